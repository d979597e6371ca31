"""State that is too large to be copied before each step, and takes a step's changes back itself."""

from __future__ import annotations

import abc

from torch import Tensor, nn


class UndoableState(nn.Module, abc.ABC):
    """Base of modules with buffers that a step may change in a few places.

    A training step that turns out not to be finite has to leave no trace. Small buffers are copied
    before it; those named in :attr:`undoable` are not: between :meth:`begin_step` and the next one the
    module remembers what it overwrites, and :meth:`undo_step` puts that back. Without a
    :meth:`begin_step` nothing is remembered.
    """

    #: Names of the buffers that :meth:`undo_step` restores.
    undoable: tuple[str, ...] = ()

    @abc.abstractmethod
    def begin_step(self) -> None:
        """Forgets the step before: it is final."""

    @abc.abstractmethod
    def undo_step(self) -> None:
        """Brings the buffers back, byte for byte, to what they were at :meth:`begin_step`."""

    def undoable_buffers(self) -> list[Tensor]:
        """The buffers of :attr:`undoable`."""
        return [self.get_buffer(name) for name in self.undoable]
