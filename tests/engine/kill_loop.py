"""Trains, is killed with SIGKILL at a random moment, goes on, and so again; then to the end.

Each run is a forked process, which saves the imports. Prints one JSON object about each kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import regseg_d2.data  # noqa: F401
import regseg_d2.segmentor  # noqa: F401
from regseg_d2.engine.launch import build_argument_parser, run
from regseg_d2.engine.main import main


def start(arguments: list[str], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 1
    try:
        run(main, build_argument_parser().parse_args(arguments))
        status = 0
    except SystemExit as error:
        status = error.code
    finally:
        os._exit(status)


def unfinished(folder: Path) -> set[Path]:
    return set(folder.glob(".model_*.partial"))


def tag(folder: Path) -> str:
    path = folder / "last_checkpoint"
    return path.read_text() if path.exists() else ""


def main_loop(folder: Path, kills: int, arguments: list[str]) -> None:
    chance = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(kills):
        before, leftovers = tag(folder), unfinished(folder)
        pid = start(["--resume", *arguments], folder / "output.txt")
        # Somewhere in the 0.4 seconds after it has begun to write its first checkpoint.
        while not unfinished(folder) - leftovers and tag(folder) == before:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended by itself"
            time.sleep(0.002)
        time.sleep(0.4 * chance.random())
        if number % 2:
            # Half of the kills are aimed at a write: a few hundredths of a second after its beginning.
            seen = unfinished(folder)
            while not unfinished(folder) - seen - leftovers:
                time.sleep(0.002)
            time.sleep(0.05 * chance.random())
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        half_written = bool(unfinished(folder) - leftovers)
        print(json.dumps({"half_written": half_written, "tag": tag(folder)}), flush=True)
    _, status = os.waitpid(start(["--resume", *arguments], folder / "output.txt"), 0)
    assert status == 0, status


if __name__ == "__main__":
    main_loop(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
