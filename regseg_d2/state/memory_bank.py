"""Ring buffers of features, one a class."""

from __future__ import annotations

import torch
from torch import Tensor

from regseg_d2.common.distributed import gather_rows
from regseg_d2.ops.sampling import group_order
from regseg_d2.state.undoable import UndoableState

#: Types that rows can be kept in, by name; float16 halves the memory.
ROW_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class MemoryBank(UndoableState):
    """The last ``capacity`` features of each class, kept in buffers.

    Slots that were never written hold zeros and are not in :attr:`filled`. All processes write the same
    rows in the same order, so that all hold the same bytes.

    Args:
        num_classes: number of classes K.
        capacity: rows kept of each class.
        channels: channels C of a row.
        dtype: type that rows are kept in.

    Raises:
        ValueError: if ``capacity`` is not positive.
    """

    # Not `written`, which is small.
    undoable = ("rows",)

    rows: Tensor
    written: Tensor

    def __init__(
        self, num_classes: int, capacity: int, channels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected 1 or more")
        self.capacity = capacity
        self.register_buffer("rows", torch.zeros(num_classes, capacity, channels, dtype=dtype))
        # Rows ever written of each class: the next one goes to slot `written % capacity`.
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))
        # Slots that were written since begin_step, and what they held; None before the first.
        self._overwritten: list[tuple[Tensor, Tensor]] | None = None

    @property
    def filled(self) -> Tensor:
        """Bool ``(K, capacity)``: slots that hold a row."""
        slots = torch.arange(self.capacity, device=self.written.device)
        return slots < self.written.unsqueeze(1)

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, full or not."""
        return self.rows.numel() * self.rows.element_size()

    @torch.no_grad()
    def push(self, rows: Tensor, classes: Tensor, valid: Tensor) -> None:
        """Writes the rows of all processes, in the order of ranks; a collective.

        Of a class with more rows than ``capacity`` the last ones stay.

        Args:
            rows: ``(M, C)``, M the same on all processes.
            classes: ``(M,)`` class of each row; one of no class (void) is not written.
            valid: ``(M,)`` bool, rows to write; those that are not finite in the bank's type are not written.
        """
        if len(rows) == 0:
            return
        num_classes = self.written.shape[0]
        rows = rows.to(self.rows.dtype)
        valid = valid & (classes >= 0) & (classes < num_classes) & rows.isfinite().all(dim=1)
        rows = gather_rows(rows)
        classes = gather_rows(torch.where(valid, classes, -1))
        groups = group_order(classes, num_classes)
        order = groups.rank_in_group()
        counts = groups.counts[classes.clamp(min=0)]
        kept = (classes >= 0) & (order >= counts - self.capacity)
        slots = (self.written[classes.clamp(min=0)] + order) % self.capacity
        self._write(rows, classes.clamp(min=0) * self.capacity + slots, kept)
        self.written += groups.counts

    def _write(self, rows: Tensor, slots: Tensor, kept: Tensor) -> None:
        # Without a shape that depends on data, rows that are not kept have to be written too: they
        # repeat the first kept row, or, where there is none, what slot 0 holds already.
        flat = self.rows.view(-1, self.rows.shape[-1])
        source = torch.where(kept, torch.arange(len(kept), device=kept.device), kept.long().argmax())
        any_kept = kept.any()
        slots = torch.where(any_kept, slots[source], 0)
        if self._overwritten is not None:
            self._overwritten.append((slots, flat[slots]))
        flat.index_copy_(0, slots, torch.where(any_kept, rows[source], flat[0]))

    def begin_step(self) -> None:
        """Starts to remember what is overwritten; see :class:`UndoableState`."""
        self._overwritten = []

    @torch.no_grad()
    def undo_step(self) -> None:
        """Puts back the rows that were overwritten since :meth:`begin_step`, the last ones first."""
        flat = self.rows.view(-1, self.rows.shape[-1])
        while self._overwritten:
            flat.index_copy_(0, *self._overwritten.pop())
