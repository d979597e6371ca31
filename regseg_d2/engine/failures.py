"""What the system does to a run, said in words: a full disk, a killed worker, a lost process."""

from __future__ import annotations

import re

import torch.distributed as dist

from regseg_d2.common.errors import DiskFullError, UserError, causes, printable
from regseg_d2.common.files import disk_full_message, is_disk_full

# What gloo, NCCL and the store say when another process has ended or does not answer.
_LOST_PROCESS = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|Timed out waiting \d+ ?ms"
    r"|Application timeout caused pair closure|Socket Timeout|ncclRemoteError|NCCL.*(timeout|aborted)"
    r"|wait timeout|recvValue failed|failed to recv",
    re.IGNORECASE,
)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)|bus error encountered in worker")


class LostProcessError(UserError):
    """Another process of the run has ended or does not answer."""


class DeadWorkerError(UserError):
    """A worker of the data loader was killed."""


class CompileError(UserError):
    """``torch.compile`` failed on a part of the network."""


def explain_failure(error: BaseException) -> UserError | None:
    """Returns an error that says what happened and what to do, or None for an error of the program.

    What the error was raised from, or while, counts too.
    """
    chain = list(causes(error))
    for link in chain:
        if isinstance(link, UserError):
            return link
    for link in chain:
        if isinstance(link, OSError) and is_disk_full(link):
            return DiskFullError(disk_full_message(link.filename))
        if isinstance(link, RuntimeError) and _DEAD_WORKER.search(str(link)):
            return DeadWorkerError(_dead_worker_message(str(link)))
        if isinstance(link, RuntimeError) and "address already in use" in str(link):
            return _port_in_use(str(link))
        if _is_of_the_compiler(link):
            return CompileError(
                "A part of the network could not be compiled (SOLVER.COMPILE). Set SOLVER.COMPILE.ENABLED "
                "False; --resume continues a run without it. What the compiler says: "
                f"{printable(str(link).strip())[:2000]}"
            )
        if _is_lost_process(link):
            first_line = str(link).strip().splitlines()[0]
            return LostProcessError(
                f"Another process of this run has ended or does not answer ({first_line}). Its own output "
                "says why; one that was killed says nothing (see dmesg, and the limits of the job). The last "
                "checkpoint is whole: --resume continues from it. How long to wait for a process is "
                "--dist-timeout (minutes)."
            )
    return None


def explain_meeting(text: str) -> UserError | None:
    """Returns the error of processes that could not meet, or None for an error of the program.

    Args:
        text: traceback of a process that the launcher has started, to its last line.
    """
    failure = re.search(r"torch\.distributed\.Dist\w*Error: (.+)", text)
    if failure is None:
        return None
    if "address already in use" in failure.group(1):
        return _port_in_use(failure.group(1))
    return UserError(
        f"The processes of the run did not meet ({printable(failure.group(1))}). --dist-url names the first "
        "machine and a free port of it, the same on all machines; see that its name is known, that no "
        "firewall is between them, and that the run was started there, too. How long they wait for each "
        "other is --dist-timeout (minutes)."
    )


def _port_in_use(text: str) -> UserError:
    return UserError(
        f"The port where the processes of a run meet is in use ({printable(text.strip().splitlines()[0])}): "
        "give another one (--dist-url tcp://HOST:PORT, or MASTER_PORT), or end the run that has it."
    )


def _is_of_the_compiler(error: BaseException) -> bool:
    # By name: importing the compiler takes seconds.
    return any(
        kind.__module__.startswith(("torch._dynamo.exc", "torch._inductor.exc")) for kind in type(error).mro()
    )


def _is_lost_process(error: BaseException) -> bool:
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)) is not None


def _dead_worker_message(text: str) -> str:
    match = _DEAD_WORKER.search(text)
    pid = match.group(1) if match else None
    who = f"A worker of the data loader (process {pid})" if pid else "A worker of the data loader"
    if "bus error" in text.lower():
        return (
            f"{who} ran out of shared memory (/dev/shm), through which batches reach the trainer. Give it "
            "more (docker run --shm-size 8g, or --ipc host), or lower DATALOADER.NUM_WORKERS; 0 needs none. "
            "--resume continues from the last checkpoint."
        )
    signal_name = re.search(r"killed by signal: ([^.]+)", text)
    how = f"was killed (signal: {signal_name.group(1).strip()})" if signal_name else "ended unexpectedly"
    return (
        f"{who} {how}. The system kills processes when memory runs out (dmesg shows it, and the job's "
        "memory limit counts all workers together): lower DATALOADER.NUM_WORKERS, INPUT.CROP.SIZE or "
        "SOLVER.IMS_PER_BATCH, or ask for more memory. --resume continues from the last checkpoint."
    )
