"""Work on many items in several processes, with progress and time to go."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regseg_d2.common.errors import DatasetError


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_results(
    items: Sequence[Any],
    function: Callable[[Any], Any],
    *,
    title: str,
    workers: int,
    already_done: int = 0,
) -> Iterator[Any]:
    """Calls a function for every item in several processes, with progress and time to go.

    Args:
        items: the arguments; are pickled.
        function: a function of a module, or a ``functools.partial`` of one. What it raises ends the work.
        title: shown with the progress.
        workers: number of processes; 0 works in this one.
        already_done: items of an earlier run, for the progress.

    Yields:
        The results, in the order in which they are done.

    Raises:
        DatasetError: a worker died.
    """
    with Progress(
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    ) as progress:
        task = progress.add_task(title, total=already_done + len(items), completed=already_done)
        for result in _results(items, function, workers):
            progress.advance(task)
            yield result


def _results(items: Sequence[Any], function: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    if workers == 0 or not items:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=_context(function)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DatasetError(
                "A process that works on the files was ended by the system, usually for want of memory. "
                f"Files that are done stay; start again with fewer than {workers} processes (--workers, or "
                "DATALOADER.NUM_WORKERS of a training)."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _context(function: Callable[[Any], Any]) -> multiprocessing.context.BaseContext:
    """How processes are started: not as forks of this one, whose threads' locks they would inherit.

    Where there is one, a server that has loaded the libraries once forks them: each starting anew would take
    seconds, and hundreds of megabytes of its own.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    work = function.func if isinstance(function, functools.partial) else function
    context.set_forkserver_preload(["__main__", work.__module__])
    return context
