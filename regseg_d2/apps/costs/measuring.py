"""Time and peak memory of actions, measured so that ratios mean something."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track


def announce(rounds: int, device: str) -> None:
    """Prints what a benchmark runs on; on a CPU everything from here on takes one thread."""
    if device == "cpu":
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    print(f"torch {torch.__version__}, {where}; medians of {rounds} interleaved rounds")


def interleaved_medians(
    actions: dict[str, Callable[[], None]], rounds: int, device: str, title: str
) -> dict[str, float]:
    """Seconds of each action: the median over rounds in which all take their turn, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for index in track(range(rounds + 1), title, transient=True):
        for name, action in actions.items():
            _wait(device)
            start = time.perf_counter()
            action()
            _wait(device)
            if index:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(make_action: Callable[..., Callable[[], None]], *args: Any, device: str) -> float:
    """MB that an action takes at most beyond the memory before it, in a process of its own.

    ``make_action``, a function of a module, is called with ``args``, which are pickled, and returns it.

    Raises:
        RuntimeError: if the process ended with an error.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_memory, args=(sender, make_action, args, device))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"measuring memory failed: the process ended with {process.exitcode}") from error
    finally:
        process.join()


def _send_peak_memory(sender: Any, make_action: Any, args: tuple[Any, ...], device: str) -> None:
    torch.set_num_threads(1)
    action = make_action(*args)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        sender.send((torch.cuda.max_memory_allocated() - before) / 1e6)
    else:
        # Resets the peak of this process, which may lie in the preparation (Linux, proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        action()
        sender.send((_status_bytes("VmHWM") - before) / 1e6)
    sender.close()


def _status_bytes(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
