"""Runs of real processes that are killed, stopped, pre-empted and spread over nodes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from regseg_d2.engine.checkpoint_history import newest_whole_checkpoint
from tests.distributed.launching import run_processes
from tests.engine.runs import (
    ROOT,
    TRAIN,
    children,
    environment,
    finish,
    free_port,
    lines_of,
    same_end,
    start,
    train,
    trainers_of,
    wait_for_steps,
)
from tests.engine.toys import ToyTrainer, toy_cfg

pytestmark = pytest.mark.slow

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD:
    {NUM_CLASSES: 10, IN_FEATURES: [res4], CONTEXT: FCN, CONTEXT_CHANNELS: 64, CONVS_DIM: 64}
  REGULARIZERS:
    NAMES: [CAR, ContrastSeg]
    CAR: {CENTERS: ema}
    ContrastSeg: {MEMORY: True, MEMORY_SIZE: 20, MAX_VIEWS: 4}
DATASETS: {TRAIN: [cooccurrence_train], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {CROP: {SIZE: [64, 64]}}
SOLVER: {MAX_ITER: 2000, IMS_PER_BATCH: 4, BASE_LR: 0.01, CHECKPOINT_PERIOD: 4}
LOG_PERIOD: 1
SEED: 3
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


# ------------------------------------------------------------------------------------------- kill -9


def test_kill_9_at_20_moments_during_and_between_checkpoint_writes(config, tmp_path):
    # A wide head, so that writing a checkpoint (33 MB) takes a while.
    keys = ("SOLVER.MAX_ITER", 200, "MODEL.SEM_SEG_HEAD.CONTEXT_CHANNELS", 1024)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(train(config, *keys, "SOLVER.CHECKPOINT_PERIOD", 0, "OUTPUT_DIR", straight))
    command = [*keys, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", killed]
    loop = start(ROOT / "tests" / "engine" / "kill_loop.py", killed, 20, "--config-file", config, *command)
    kills = [json.loads(line) for line in finish(loop, timeout=450).splitlines() if line.startswith("{")]
    assert len(kills) == 20
    during = sum(kill["half_written"] for kill in kills)
    print(f"{during} of 20 kills hit a write; tags: {[kill['tag'] for kill in kills]}")
    assert 1 <= during <= 19
    output = (killed / "output.txt").read_text()
    assert "NOT CONTINUING" not in output  # what was renamed was whole, each time
    assert len(re.findall(r"/\.model_\d+\.pth\S+, left half written by a killed run", output)) == during
    assert not list(killed.glob(".*.partial"))
    assert same_end(straight, killed)
    assert [json.loads(line)["iteration"] for line in lines_of(killed)] == list(range(200))


def test_a_killed_worker_is_reported_as_such(config, tmp_path):
    process = train(config, "DATALOADER.NUM_WORKERS", 2, "OUTPUT_DIR", tmp_path / "run")
    wait_for_steps(process, tmp_path / "run", 5)
    workers = [
        pid for pid in children(process.pid) if "train_net.py" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    output = finish(process, status=2)
    message = output[output.rindex("\nError: ") :]
    assert f"A worker of the data loader (process {workers[0]}) was killed (signal: Killed)" in message
    assert "lower DATALOADER.NUM_WORKERS" in message and "Traceback" not in message


def test_one_of_two_processes_is_killed_under_the_launcher(config, tmp_path):
    process = train(config, "--num-gpus", 2, "OUTPUT_DIR", tmp_path / "run")
    wait_for_steps(process, tmp_path / "run", 5)
    pids = trainers_of(process.pid)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert process.returncode in (2, 137), output[-4000:]
    assert "was killed by SIGKILL" in output or "Another process of this run has ended" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def start_two(config, folder, *arguments):
    """Two processes of one run that nobody watches over."""
    port = free_port()
    return [
        train(
            config,
            *arguments,
            "OUTPUT_DIR",
            folder,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]


def kill_the_other_while_writing(folder):
    """Trains on two processes; the second is killed in the middle of the first one's second checkpoint."""
    trainer = ToyTrainer(toy_cfg(folder, SOLVER__CHECKPOINT_PERIOD=1))
    trainer.resume_or_load(resume=False)
    other = comm.all_gather(os.getpid())[1]
    save, calls = torch.save, []

    def save_slowly(data, file):
        whole = io.BytesIO()
        save(data, whole)
        content = whole.getvalue()
        calls.append(len(content))
        file.write(content[: len(content) // 2])
        file.flush()
        if len(calls) == 2:
            os.kill(other, signal.SIGKILL)
            time.sleep(3)  # the launcher, too, sends its signal while the file is half there
        file.write(content[len(content) // 2 :])

    torch.save = save_slowly
    trainer.train()


def test_a_process_that_is_killed_while_another_writes_a_checkpoint_leaves_it_whole(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(kill_the_other_while_writing, 2, tmp_path, str(folder))
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    assert newest_whole_checkpoint(folder).name == "model_0000001.pth"
    assert not list(folder.glob(".*.partial"))
    trainer = ToyTrainer(toy_cfg(folder))
    trainer.resume_or_load(resume=True)
    assert trainer.completed_steps == 2
    trainer.train()


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed_and_the_other_says_so_and_stops(config, tmp_path, victim):
    processes = start_two(config, tmp_path / "run")
    wait_for_steps(processes[0], tmp_path / "run", 5)
    processes[victim].kill()
    begin = time.monotonic()
    output = finish(processes[1 - victim], status=2, timeout=90)
    assert time.monotonic() - begin < 60
    assert "Another process of this run has ended or does not answer" in output
    assert "--resume continues from it" in output
    processes[victim].communicate()


def test_a_process_that_does_not_answer_is_waited_for_as_long_as_said(config, tmp_path):
    processes = start_two(config, tmp_path / "run", "--dist-timeout", "0.3")
    wait_for_steps(processes[0], tmp_path / "run", 5)
    os.kill(processes[1].pid, signal.SIGSTOP)
    begin = time.monotonic()
    output = finish(processes[0], status=2, timeout=120)
    waited = time.monotonic() - begin
    processes[1].kill()
    processes[1].communicate()
    assert 15 < waited < 60
    assert "does not answer" in output and "--dist-timeout" in output


# ------------------------------------------------------------------------------------------- SIGTERM


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_with_status_75_and_the_run_goes_on_to_the_bit(config, tmp_path, processes):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    keys = ("SOLVER.MAX_ITER", 30, "DATALOADER.NUM_WORKERS", 1)
    command = ("--num-gpus", processes)
    finish(train(config, *command, *keys, "OUTPUT_DIR", straight))
    process = train(config, *command, *keys, "OUTPUT_DIR", stopped)
    wait_for_steps(process, stopped, 5)
    # As SLURM does it: to every process of the job, the workers too. Or as a user does: to the launcher.
    (os.killpg if processes == 1 else os.kill)(process.pid, signal.SIGTERM)
    output = finish(process, status=75, timeout=60)
    assert output.count("Stopped by a signal after step ") == 1
    steps = int(output.split("Stopped by a signal after step ")[1].split()[0])
    assert (stopped / "last_checkpoint").read_text() == f"model_{steps - 1:07d}.pth"
    output = finish(train(config, *command, "--resume", *keys, "OUTPUT_DIR", stopped))
    assert f"Training from step {steps} to 30" in output
    assert same_end(straight, stopped)


# -------------------------------------------------------------------------------------- several nodes


def losses(folder):
    shown = ("iteration", "total_loss", "loss_sem_seg", "lr")
    return [{key: json.loads(line)[key] for key in shown} for line in lines_of(folder)]


def test_two_nodes_are_one_machine_with_two_processes(config, tmp_path):
    keys = ("SOLVER.MAX_ITER", 12)
    finish(train(config, "--num-gpus", 2, *keys, "OUTPUT_DIR", tmp_path / "machine"))
    port = free_port()
    nodes = [
        start(
            *("-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--node-rank", node),
            *("--master-addr", "127.0.0.1", "--master-port", port, TRAIN, "--config-file", config, *keys),
            *("OUTPUT_DIR", tmp_path / f"node{node}"),  # as on machines that share no disk
        )
        for node in range(2)
    ]
    outputs = [finish(node) for node in nodes]
    assert "process 0 of 2" in outputs[0]
    assert losses(tmp_path / "node0") == losses(tmp_path / "machine")
    assert len(losses(tmp_path / "machine")) == 12
    assert same_end(tmp_path / "machine", tmp_path / "node0")
    # The global main process alone writes; the local one of the second node writes its log.
    assert [path.name for path in (tmp_path / "node1").iterdir()] == ["log.txt.rank1"]


FAKES = {
    # Two tasks, as on two nodes; ends with the largest of their statuses.
    "srun": """
while [ "${1#--}" != "$1" ]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & echo $! >> "$FAKE/pids"; pids="$pids $!"
done
for pid in $pids; do wait $pid; code=$?; [ $code -gt ${largest:-0} ] && largest=$code; done
exit ${largest:-0}
""",
    "scancel": """
echo "scancel $*" >> "$FAKE/calls"
kill -TERM $(cat "$FAKE/pids")
""",
    "squeue": 'echo "${FAKE_STATE}"',
    "scontrol": 'echo "scontrol $*" >> "$FAKE/calls"',
}


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_the_slurm_script_is_put_back_into_the_queue(config, tmp_path, state):
    script = ROOT / "tools" / "slurm" / "train.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, body in FAKES.items():
        (fake / name).write_text(f"#!/bin/bash\n{body}")
        (fake / name).chmod(0o755)
    variables = environment(
        PATH=f"{fake}:{os.environ['PATH']}",
        FAKE=str(fake),
        FAKE_STATE=state,
        PYTHON=sys.executable,
        SLURM_JOB_ID="4242",
        SLURM_NTASKS="2",
        SLURM_NNODES="2",
        SLURM_JOB_NODELIST="localhost",
        MASTER_PORT=free_port(),
    )
    job = subprocess.Popen(
        ["bash", script, "--config-file", config, "OUTPUT_DIR", tmp_path / "run"],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_steps(job, tmp_path / "run", 5)
    job.send_signal(signal.SIGUSR1)
    output = finish(job, status=75, timeout=90)
    calls = (fake / "calls").read_text().splitlines()
    assert calls == ["scancel --signal=TERM 4242"] + ["scontrol requeue 4242"] * (state == "RUNNING")
    assert output.count("Stopped by a signal after step ") == 1
    assert (tmp_path / "run" / "last_checkpoint").exists()
