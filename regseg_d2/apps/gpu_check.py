"""Everything that needs a GPU to be seen, in one call that ends within its time."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """One part of the check.

    After its seconds it is ended, and what it printed is kept; that is no failure of a part that
    ``may_end_early``, whose results are complete one by one.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    may_end_early: bool = False


def parts(output: Path) -> list[Part]:
    """The parts, 510 seconds in all."""
    steps = ("tools/benchmark.py", "steps", "--rounds", "5", "--device", "cuda")
    return [
        Part("tests", ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), 100),
        Part(
            "regularizers",
            ("tools/benchmark.py", "regularizers", "--only-losses", "--rounds", "5", "--device", "cuda"),
            70,
        ),
        Part("steps", steps, 100),
        Part(
            "camvid",
            ("tools/experiment.py", "experiments/camvid_gpu.yaml", "--jobs", "5", "--output", str(output)),
            240,
            may_end_early=True,
        ),
    ]


def run(output: Path, chosen: list[Part] | None = None) -> int:
    """Runs the parts, all by default, one after the other; returns how many failed."""
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(output / "gpu_check.txt", "w") as report:
        for part in parts(output) if chosen is None else chosen:
            began = time.monotonic()
            status, text = _run(part)
            end = "ended by its time" if status is None else f"status {status}"
            block = f"== {part.name}: {end}, {time.monotonic() - began:.0f} s\n{text}\n"
            print(block, flush=True)
            report.write(block)
            report.flush()
            failed += (status is None and not part.may_end_early) or bool(status)
    return failed


def _run(part: Part) -> tuple[int | None, str]:
    process = subprocess.Popen(
        [sys.executable, *part.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, _ = process.communicate(timeout=part.seconds)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            text, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        return None, text
