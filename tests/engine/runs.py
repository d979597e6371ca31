"""Runs of ``tools/train_net.py`` in processes of their own, to be watched, killed and compared."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from regseg_d2.weights.reading import load_file
from tests.engine.toys import same_state

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "tools" / "train_net.py")


def environment(**variables):
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables


def start(*command, **variables):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(config, *arguments, **variables):
    return start(TRAIN, "--config-file", config, *arguments, **variables)


def finish(process, status=0, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == status, output[-4000:]
    return output


def lines_of(folder):
    path = folder / "metrics.json"
    return path.read_text().splitlines() if path.is_file() else []


def wait_for_steps(process, folder, steps):
    deadline = time.monotonic() + 300
    while len(lines_of(folder)) < steps:
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def trainers_of(launcher):
    """The processes that --num-gpus has started, in the order of their ranks."""
    return [pid for pid in children(launcher) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def same_end(first, second):
    a, b = (load_file(str(folder / "model_final.pth")) for folder in (first, second))
    return same_state(a["model"], b["model"]) and same_state(a["trainer"], b["trainer"])
