"""Which process am I, and how errors end a run."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessRaisedException

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine import launch
from regseg_d2.engine.launch import ProcessGroup, build_argument_parser, find_process_group, first_host
from tests.distributed.launching import run_processes

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
MEETING = {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],login1",
}


def test_arguments_are_detectron2s_and_ours():
    args = build_argument_parser().parse_args(
        ["--config-file", "x.yaml", "--num-gpus", "2", "--resume", "--eval-only", "SEED", "3"]
    )
    assert (args.config_file, args.num_gpus, args.resume, args.eval_only) == ("x.yaml", 2, True, True)
    assert (args.dist_url, args.opts, args.print_config, args.trust_pickle) == (
        "auto",
        ["SEED", "3"],
        False,
        False,
    )
    args = build_argument_parser().parse_args(["--print-config", "--trust-pickle", "--machine-rank", "1"])
    assert (args.print_config, args.trust_pickle, args.machine_rank, args.opts) == (True, True, 1, [])


def test_alone():
    assert find_process_group({}) is None
    assert find_process_group({"RANK": "0", "WORLD_SIZE": "2"}) is None  # a cluster's, not torchrun's


def test_torchrun():
    assert find_process_group(TORCHRUN | MEETING) == ProcessGroup(5, 8, 1, 4, "env://")
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT"):
        find_process_group(TORCHRUN)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_variable_that_is_no_number_is_named(name):
    with pytest.raises(ConfigError, match=f"{name} is 'x'; expected a whole number"):
        find_process_group(TORCHRUN | MEETING | {name: "x"})


def test_slurm():
    assert find_process_group(SLURM) == ProcessGroup(5, 8, 1, 4, "tcp://gpu07:23456")
    assert find_process_group(SLURM | MEETING).url == "tcp://host:29500"
    # One task, or processes asked for with --num-gpus: they are started here.
    assert find_process_group(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find_process_group(SLURM, num_gpus=4) is None
    with pytest.raises(ConfigError, match="8 tasks on 3 nodes"):
        find_process_group(SLURM | {"SLURM_NNODES": "3"})
    with pytest.raises(ConfigError, match="names no host"):
        find_process_group(SLURM | {"SLURM_JOB_NODELIST": ""})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("rack2-gpu[001-004]-ib,x", "rack2-gpu001-ib"),
    ],
)
def test_first_host(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-gpus", "0"], "--num-gpus and --num-machines are 1 or more"),
        (["--num-machines", "2"], "need --dist-url"),
        (["--num-gpus", "2", "--dist-url", "foo"], "--dist-url is 'foo'; expected auto, tcp://HOST:PORT"),
        (["--num-gpus", "2", "--dist-url", "tcp://host:99999"], "is 'tcp://host:99999'; expected auto"),
        (["--num-gpus", "2", "--dist-url", "tcp://host:0"], "is 'tcp://host:0'; expected auto"),
        (["SEEED", "3"], "did you mean 'SEED'"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml' does not exist"),
    ],
)
def test_errors_before_any_process_is_started(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(launch, "launch_with_detectron2", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(SystemExit) as info:
        launch.run(pytest.fail, build_argument_parser().parse_args(arguments))
    assert info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_print_config_starts_nothing(capsys, monkeypatch):
    monkeypatch.setattr(launch, "launch_with_detectron2", lambda *args, **kwargs: pytest.fail("started"))
    launch.run(pytest.fail, build_argument_parser().parse_args(["--print-config", "SEED", "3"]))
    assert "SEED: 3  # command line" in capsys.readouterr().out


def test_user_errors_end_a_process_with_code_2_and_others_keep_their_traceback(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as info:
        launch.guarded(fail, UserError("do this instead"))
    assert info.value.code == 2
    assert capsys.readouterr().err == "\nError: do this instead\n"
    with pytest.raises(ZeroDivisionError):
        launch.guarded(fail, ZeroDivisionError())


def fail_everywhere(args):
    raise UserError("the same on every process")


def report_place(args):
    """Writes what this process knows about its place, and the sum of all ranks."""
    from detectron2.utils import comm

    total = torch.tensor(float(comm.get_rank()))
    torch.distributed.all_reduce(total)
    name = Path(args.opts[1]) / f"{comm.get_rank()}"
    name.write_text(f"{comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()} {total.item()}")


PROGRAM = """
import sys
import time
from regseg_d2.engine.launch import build_argument_parser, run
from tests.engine import test_launch
if __name__ == "__main__":
    run(getattr(test_launch, sys.argv[1]), build_argument_parser().parse_args(sys.argv[2:]))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def clean_environment(**variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD_SIZE", "LOCAL_"))}
    return env | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables


@pytest.mark.slow
def test_two_processes_that_fail_speak_once_and_exit_with_2(program):
    result = subprocess.run(
        [sys.executable, program, "fail_everywhere", "--num-gpus", "2", "MODEL.DEVICE", "cpu"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("the same on every process") == 1
    assert "Traceback" not in result.stderr


@pytest.fixture
def taken_port():
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


@pytest.mark.parametrize("started_by", ["--num-gpus", "torchrun"])
@pytest.mark.slow
def test_a_port_that_is_in_use_is_one_error_and_status_2(program, taken_port, started_by):
    if started_by == "torchrun":  # or whoever sets its variables
        arguments = []
        variables = TORCHRUN | {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken_port}
    else:
        arguments = ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{taken_port}"]
        variables = {}
    result = subprocess.run(
        [sys.executable, program, "fail_everywhere", *arguments, "MODEL.DEVICE", "cpu"],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("Error: ") == 1 and "Traceback" not in result.stderr
    assert "\nError: The port where the processes of a run meet is in use (The server" in result.stderr
    assert f"port: {taken_port}" in result.stderr and "give another one (--dist-url" in result.stderr


@pytest.mark.slow
def test_processes_that_do_not_meet_are_one_error_and_status_2(program):
    arguments = ["--num-machines", "2", "--machine-rank", "1", "--dist-timeout", "0.05"]
    result = subprocess.run(
        [sys.executable, program, "fail_everywhere", *arguments, "--dist-url", "tcp://127.0.0.1:1"]
        + ["MODEL.DEVICE", "cpu"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert "\nError: The processes of the run did not meet (" in result.stderr
    assert "Traceback" not in result.stderr and "the same on all machines" in result.stderr


def test_what_is_no_failure_to_meet_keeps_its_traceback(monkeypatch):
    text = "-- Process 0 terminated with the following error:\nTraceback ...\nZeroDivisionError: by zero\n"

    def launch_fails(*arguments, **options):
        raise ProcessRaisedException(text, 0, 1)

    monkeypatch.setattr(launch, "launch_with_detectron2", launch_fails)
    with pytest.raises(ProcessRaisedException):
        launch.run(pytest.fail, build_argument_parser().parse_args(["--num-gpus", "2"]))


def fail_with_store(case):
    """One of two processes that fail; the launcher stops none of them."""
    torch.set_num_threads(1)
    launch.SECONDS_FOR_THE_MAIN_PROCESS = 0.5
    if case == "only_the_second" and comm.is_main_process():
        time.sleep(3)
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        launch._report(UserError("no such file"))
    if comm.is_main_process() and case == "both":
        time.sleep(3)
    return printed.getvalue()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("both", ["\nError: no such file\n", ""]),
        ("main_ends", ["\nError: no such file\n", ""]),
        ("only_the_second", ["", "\nError in process 1: no such file\n"]),
    ],
)
def test_an_error_is_reported_once_even_if_nobody_is_stopped(case, expected, tmp_path):
    assert run_processes(fail_with_store, 2, tmp_path, case) == expected


@pytest.mark.slow
def test_torchrun_starts_two_processes(program, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
        + ["--standalone", program, "report_place", "OUTPUT_DIR", str(tmp_path)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / name).read_text() for name in "01"] == ["2 0 2 1.0", "2 1 2 1.0"]


@pytest.mark.slow
def test_slurm_variables_join_two_processes(program, tmp_path):
    port = str(23000 + os.getpid() % 20000)
    processes = [
        subprocess.Popen(
            [sys.executable, program, "report_place", "OUTPUT_DIR", str(tmp_path)],
            env=clean_environment(
                SLURM_PROCID=str(rank),
                SLURM_LOCALID=str(rank),
                SLURM_NTASKS="2",
                SLURM_NNODES="1",
                SLURM_JOB_NODELIST="localhost",
                MASTER_PORT=port,
            ),
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [(tmp_path / name).read_text() for name in "01"] == ["2 0 2 1.0", "2 1 2 1.0"]


def test_threads_are_shared_among_processes(monkeypatch):
    from regseg_d2.engine import devices

    monkeypatch.setattr(devices.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(devices.comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    chosen = []
    monkeypatch.setattr(devices.torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    devices.limit_cpu_threads()
    assert chosen == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    devices.limit_cpu_threads()
    assert chosen == [3]
