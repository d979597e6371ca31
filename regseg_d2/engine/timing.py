"""How long training waits for its data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from regseg_d2.engine.interruption import StopSignals


class TimedIterator:
    """Gives the batches of a loader, and adds up the seconds it was waited for. A signal ends the wait.

    Attributes:
        seconds: the sum since it was last set to zero.
    """

    def __init__(self, loader: Iterable[list[dict[str, Any]]], signals: StopSignals) -> None:
        self._iterator = iter(loader)
        self._signals = signals
        self.seconds = 0.0

    def __iter__(self) -> TimedIterator:
        return self

    def __next__(self) -> list[dict[str, Any]]:
        """Returns the next batch.

        Raises:
            EndlessWaitError: the run is to end, and no batch has come.
        """
        start = time.perf_counter()
        with self._signals.ending_a_wait("a batch of training data"):
            batch = next(self._iterator)
        self.seconds += time.perf_counter() - start
        return batch
