"""Where the diagnostics of regularizers go in a training of Detectron2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detectron2.utils.events import get_event_storage, has_event_storage


@dataclass(frozen=True)
class EventStorageObserver:
    """Puts diagnostics into Detectron2's EventStorage; an observer of a :class:`Regularizer`.

    Attributes:
        period: iterations between two records.
    """

    period: int

    def __call__(self) -> Callable[[str, float], None] | None:
        """Returns the storage's ``put_scalar`` in an iteration that is recorded."""
        if not has_event_storage():
            return None
        storage = get_event_storage()
        return None if (storage.iter + 1) % self.period else storage.put_scalar
