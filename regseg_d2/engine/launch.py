"""Command line of training, and how its processes are started."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import launch as launch_with_detectron2
from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from regseg_d2.common.errors import ConfigError, UserError, errors_end_the_program, print_error
from regseg_d2.common.outputs import let_go_of_lost_outputs
from regseg_d2.config.files import load_config_with_origins, print_config
from regseg_d2.engine.failures import LostProcessError, explain_failure, explain_meeting
from regseg_d2.engine.interruption import (
    INTERRUPTED_EXIT_CODE,
    STOP_SIGNALS,
    Interrupted,
    signals_forwarded,
)

USER_ERROR_EXIT_CODE = 2
# Key in the store of the process group: the main process has reported its error.
MAIN_PROCESS_SPOKE = "regseg_d2/main_process_spoke"
SECONDS_FOR_THE_MAIN_PROCESS = 5


def build_argument_parser() -> argparse.ArgumentParser:
    """Returns Detectron2's parser with this package's options."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--print-config", action="store_true", help="print the config with the origin of its values, and stop"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load checkpoints that hold more than tensors and plain containers: their code runs!",
    )
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="how long processes wait for one that does not answer before the run ends (default: 10)",
    )
    return parser


@dataclass(frozen=True)
class ProcessGroup:
    """The place of this process among processes that somebody else started."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def find_process_group(environment: Mapping[str, str], num_gpus: int = 1) -> ProcessGroup | None:
    """Returns what torchrun or SLURM say about this process, or None where neither started it.

    Args:
        environment: the environment variables. torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; SLURM's
            ``srun`` sets SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID.
        num_gpus: of ``--num-gpus``. A number above 1 asks for processes to be started here, and SLURM's
            variables, which every command of a job has, are then not taken to heart.

    Raises:
        ConfigError: the variables do not say where the processes meet.
    """
    env = environment

    def number(name: str, default: int = 0) -> int:
        text = env.get(name, str(default))
        if not text.isdecimal():
            raise ConfigError(f"The environment variable {name} is {text!r}; expected a whole number.")
        return int(text)

    if all(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        world_size = number("WORLD_SIZE")
        local_size = number("LOCAL_WORLD_SIZE", world_size)
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise ConfigError(
                "RANK, WORLD_SIZE and LOCAL_RANK are set: set MASTER_ADDR and MASTER_PORT as well."
            )
        return ProcessGroup(number("RANK"), world_size, number("LOCAL_RANK"), local_size, "env://")
    if all(name in env for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        world_size = number("SLURM_NTASKS")
        if world_size == 1 or num_gpus > 1:
            return None
        nodes = max(number("SLURM_NNODES", 1), 1)
        local_size = world_size // nodes
        if local_size * nodes != world_size:
            raise ConfigError(
                f"SLURM runs {world_size} tasks on {nodes} nodes: give every node the same "
                "number (--ntasks-per-node)."
            )
        rank, local_rank = number("SLURM_PROCID"), number("SLURM_LOCALID")
        return ProcessGroup(rank, world_size, local_rank, local_size, _slurm_url(env))
    return None


def _slurm_url(env: Mapping[str, str]) -> str:
    host = env.get("MASTER_ADDR") or first_host(env.get("SLURM_JOB_NODELIST", ""))
    # The same on every task, and another one for another job on the node.
    port = env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
    return f"tcp://{host}:{port}"


def first_host(nodelist: str) -> str:
    """Returns the first host of SLURM's notation, such as ``gpu07`` of ``gpu[07-09,12],login1``.

    Raises:
        ConfigError: the notation is not understood.
    """
    match = re.match(r"([^\[,\s]+)(?:\[([^\],-]+)[^\]]*\]([^,\s]*))?", nodelist)
    if match is None:
        raise ConfigError(
            f"SLURM_JOB_NODELIST is '{nodelist}', which names no host: set MASTER_ADDR and MASTER_PORT."
        )
    return "".join(part or "" for part in match.groups())


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in every process, and ends this process with an exit code.

    ``main`` has to be importable by its name.

    An error that the user can cure is printed without a traceback, exit code 2. A run that a signal
    ended, with a checkpoint, has exit code 75.
    """
    try:
        # Before any process is started, so that a misspelt key is reported once and at once.
        cfg, origins = load_config_with_origins(args.config_file, args.opts)
        if args.print_config:
            with errors_end_the_program():
                print_config(cfg, origins)
            return
        group = find_process_group(os.environ, args.num_gpus)
        if args.dist_timeout <= 0:
            raise ConfigError(f"--dist-timeout is {args.dist_timeout:g}; expected minutes, more than 0.")
        if group is None:
            _check_arguments(args, cfg.MODEL.DEVICE)
    except UserError as error:
        print_error(error)
        sys.exit(USER_ERROR_EXIT_CODE)
    if cfg.MODEL.DEVICE == "cpu":
        # Detectron2 asks torch whether there is a GPU to choose between NCCL and gloo.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    timeout = timedelta(minutes=args.dist_timeout)
    if group is not None:
        guarded(_join_and_run, argparse.Namespace(main=main, args=args, group=group, timeout=timeout))
    elif args.num_gpus * args.num_machines == 1:
        guarded(main, args)
    else:
        _start_processes(main, args, timeout)


def _start_processes(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, timeout: timedelta
) -> None:
    try:
        with signals_forwarded(multiprocessing.active_children):
            launch_with_detectron2(
                guarded,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
                timeout=timeout,
            )
    except ProcessRaisedException as error:
        explained = explain_meeting(str(error))
        if explained is None:
            raise
        print_error(explained, "\nError: ")
        sys.exit(USER_ERROR_EXIT_CODE)
    except ProcessExitedException as error:
        if error.exit_code >= 0:
            sys.exit(error.exit_code)  # the process has said why
        print(
            f"\nError: process {error.error_index} was killed by {error.signal_name}; the others were "
            "stopped. The system kills processes when memory runs out (see dmesg, and the limits of the "
            "job). --resume continues from the last checkpoint.",
            file=sys.stderr,
        )
        sys.exit(128 - error.exit_code)  # as a shell says it


def _check_arguments(args: argparse.Namespace, device: str) -> None:
    if args.num_gpus < 1 or args.num_machines < 1:
        raise ConfigError("--num-gpus and --num-machines are 1 or more (on a CPU: the number of processes).")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError(
            "Several machines need --dist-url tcp://HOST:PORT, with a host and a free port of the first "
            "machine."
        )
    url = re.fullmatch(r"tcp://(?:[^:/]+|\[[^/]+\]):(\d{1,5})|file:///.+|env://", args.dist_url)
    if args.dist_url != "auto" and (url is None or int(url[1] or 1) not in range(1, 1 << 16)):
        raise ConfigError(f"--dist-url is {args.dist_url!r}; expected auto, tcp://HOST:PORT or file:///PATH.")
    gpus = torch.cuda.device_count()
    if device != "cpu" and 0 < gpus < args.num_gpus:
        raise ConfigError(f"--num-gpus is {args.num_gpus}, and torch finds {gpus} on this machine.")


def _join_and_run(run: argparse.Namespace) -> None:
    _join(run.group, run.timeout)
    run.main(run.args)


def _join(group: ProcessGroup, timeout: timedelta) -> None:
    """Meets the other processes; NCCL where there are GPUs, else gloo."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(group.local_rank)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=group.url,
        world_size=group.world_size,
        rank=group.rank,
        timeout=timeout,
    )
    comm.create_local_process_group(group.local_size)
    comm.synchronize()


def guarded(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs ``main(args)``; ends the process with 2 for an error that the user can cure, 75 on a signal."""
    try:
        main(args)
        # All end together: gloo may abort a process whose partner still writes the last checkpoint.
        comm.synchronize()
    except Interrupted as interruption:
        _end_interrupted(interruption)
    except Exception as error:
        explained = explain_failure(error)
        if explained is None:
            raise
        _report(explained)
        if dist.is_initialized():
            _end_at_once(USER_ERROR_EXIT_CODE)
        sys.exit(USER_ERROR_EXIT_CODE)
    if dist.is_initialized():
        dist.destroy_process_group()
        _end_at_once(0)


def _end_at_once(status: int) -> NoReturn:
    """Ends a process of several without taking Python down.

    A thread of gloo may still hold a tensor, or talk to a process that is gone: it would abort this one, and
    the status would be another one.
    """
    for child in multiprocessing.active_children():
        child.terminate()  # loader workers
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_interrupted(interruption: Interrupted) -> None:
    """Ends the process with the exit status of a run to be resumed, all processes at the same time."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # it is ending, and the status shall say how
    let_go_of_lost_outputs()
    if comm.is_main_process():
        print_error(interruption, "\n")
    comm.synchronize()
    if dist.is_initialized():
        dist.destroy_process_group()
        _end_at_once(INTERRUPTED_EXIT_CODE)
    sys.exit(INTERRUPTED_EXIT_CODE)


def _report(error: UserError) -> None:
    """Prints an error once, though most errors are met by every process: the main one speaks.

    Another process gives it some seconds, in which its end usually makes the launcher stop the others,
    and speaks only if the main process did not: then the error is this process's own. That another
    process was lost is said by all that are left: the main process may be the one.
    """
    if comm.is_main_process():
        print_error(error, "\nError: ")
        if dist.is_initialized():
            _get_default_store().set(MAIN_PROCESS_SPOKE, "yes")
        return
    time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    if isinstance(error, LostProcessError):
        print_error(error, f"\nError in process {comm.get_rank()}: ")
        return
    try:
        spoke = _get_default_store().check([MAIN_PROCESS_SPOKE])
    except dist.DistError:
        spoke = True  # the main process, where the store lives, has ended
    if not spoke:
        print_error(error, f"\nError in process {comm.get_rank()}: ")
