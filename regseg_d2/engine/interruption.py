"""Ending a run on a signal: at the same step on all processes, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from regseg_d2.common.errors import UserError

# The exit status of a run that was interrupted and can be resumed: EX_TEMPFAIL of sysexits.h. A process
# that dies of the signal has another one (143), so that a job script can tell whether to requeue.
INTERRUPTED_EXIT_CODE = 75
# SIGHUP is that of a terminal that was closed, or of a connection to it that broke.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Seconds that a run which is to end waits for what its step needs; torchrun kills after 30.
SECONDS_TO_WAIT = 15.0


def heeded_signals() -> list[signal.Signals]:
    """Those of STOP_SIGNALS that end a run: all, but for SIGHUP under ``nohup``, which has it ignored."""
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (is_nohup and number == signal.SIGHUP)]


class EndlessWaitError(UserError):
    """A signal came, and what the step needed to end did not."""


class Interrupted(Exception):  # noqa: N818 (not an error: the run did as it was told)
    """A signal ended the run; its last checkpoint holds all that was done."""


class EvaluationInterrupted(Exception):  # noqa: N818
    """A signal ended an evaluation before it had seen all images."""


class StopSignals:
    """Takes note of SIGTERM, SIGINT and SIGHUP, instead of dying of them, while it is entered.

    SLURM sends SIGTERM before it pre-empts a job or its time is up, and a terminal sends SIGINT
    (Ctrl-C), and SIGHUP when it is closed. A second SIGINT ends the process at once. Outside the main
    thread, where Python allows no handlers, nothing is done.

    Attributes:
        received: name of the signal that came last, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._awaited = ""

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        # Not the logger: it may be in the middle of a line, and its stream cannot be entered twice.
        again = " Ctrl-C again stops at once, without a checkpoint." if number == signal.SIGINT else ""
        with suppress(OSError):  # of a terminal that is gone, or a pipe to one that got the signal as well
            os.write(2, f"\n{self.received}: stopping after this step, with a checkpoint.{again}\n".encode())
        if self._awaited:
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_WAIT)

    @contextmanager
    def ending_a_wait(self, awaited: str) -> Iterator[None]:
        """Around a wait that may have no end: a signal ends it after a while.

        Raises:
            EndlessWaitError: a signal has come, and what is waited for has not.
        """
        if not self._before:  # not entered, or not in the main thread
            yield
            return
        self._awaited = awaited
        before = signal.signal(signal.SIGALRM, self._give_up)
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_WAIT)
        try:
            yield
        finally:
            self._awaited = ""
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        raise EndlessWaitError(
            f"Stopped by {self.received} while waiting for {self._awaited}, which did not come within "
            f"{SECONDS_TO_WAIT:.0f} seconds. Workers that are stuck may lack shared memory (/dev/shm) or "
            "hang on a file system; DATALOADER.NUM_WORKERS 0 needs none. --resume continues from the last "
            "checkpoint."
        )


class StoppableEvaluation(DatasetEvaluators):
    """An evaluator, and the loader of its images, that stop early when a signal has come.

    A process with a signal takes no more images; the others go on to the end of their share. Then
    all of them agree, before any score is computed.
    """

    def __init__(self, evaluator: DatasetEvaluator, loader: Any, is_stopping: Callable[[], bool]) -> None:
        super().__init__([evaluator])
        self._is_stopping = is_stopping
        self.loader = _StoppableLoader(loader, is_stopping)

    def evaluate(self) -> Any:
        """See the evaluator.

        Raises:
            EvaluationInterrupted: on all processes, where one of them is stopping.
        """
        if any(comm.all_gather(self._is_stopping())):
            raise EvaluationInterrupted
        return self._evaluators[0].evaluate()


class _StoppableLoader:
    def __init__(self, loader: Any, is_stopping: Callable[[], bool]) -> None:
        self._loader = loader
        self._is_stopping = is_stopping

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if self._is_stopping():
                return
            yield batch


@contextmanager
def signals_forwarded(children: Callable[[], list[Any]]) -> Iterator[None]:
    """Hands SIGTERM, SIGHUP and the first SIGINT on to child processes, which then end by themselves."""

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in children():
            child.terminate()  # SIGTERM for all: a terminal has sent its own signals to the children itself

    before = {number: signal.signal(number, forward) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
