"""A SLURM of one machine: ``sbatch``, ``srun`` and ``squeue`` that queue and run jobs and job arrays.

Environment: ``FAKE_SLURM`` is its folder. A file ``hold`` in it keeps jobs from starting; one ``down`` makes
``squeue`` fail. Jobs are files below ``jobs`` until they have ended; scripts that came are below ``scripts``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue")


def install(folder: Path) -> dict[str, str]:
    """Returns the environment variables that make it the machine's SLURM."""
    for name in ("bin", "jobs", "scripts"):
        (folder / name).mkdir(parents=True)
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        program.chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def sbatch(home: Path, script: str) -> None:
    text = Path(script).read_text()
    if "--partition=nowhere" in text:
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = 100 + len(list((home / "scripts").iterdir()))
    kept = home / "scripts" / f"{number}.sh"
    kept.write_text(text)
    array = re.search(r"--array='?0-(\d+)%(\d+)", text)
    names = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [str(number)]
    for name in names:
        (home / "jobs" / name).touch()
    subprocess.Popen(
        [sys.executable, __file__, "work", str(kept), array[2] if array else "1", *names],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"Submitted batch job {number}")


def work(home: Path, script: str, at_a_time: str, *names: str) -> None:
    """What the controller does with the jobs of a script."""
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < int(at_a_time) and not (home / "hold").exists():
            name = waiting.pop(0)
            number, _, index = name.partition("_")
            variables = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
            if index:
                variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
            running[name] = subprocess.Popen(["bash", script], env={**os.environ, **variables})
        time.sleep(0.05)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            del running[name]
            (home / "jobs" / name).unlink()
        waiting = [name for name in waiting if (home / "jobs" / name).exists()]


def srun(home: Path, *words: str) -> None:
    options = dict(zip(words, words[1:], strict=False))
    number, index = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for stream, key in ((1, "--output"), (2, "--error")):
        path = options[key].replace("%j", number).replace("%A", number).replace("%a", index)
        with open(path.replace("%t", "0"), "a") as file:
            os.dup2(file.fileno(), stream)
    start = words.index(sys.executable)
    os.execv(sys.executable, list(words[start:]))


def squeue(home: Path, *words: str) -> None:
    if (home / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    print("\n".join(path.name for path in (home / "jobs").iterdir()))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
