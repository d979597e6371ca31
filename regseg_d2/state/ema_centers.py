"""Class centers as moving averages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmaCenters(nn.Module):
    """One moving average of a feature per class, kept in buffers.

    Starts from zeros and explicit counts, so that every process holds the same bytes whatever its
    seed: a class is unseen while its count is 0, and its first value is taken as it is. The values
    given must be the same on all processes (sums reduced over processes, then divided once).

    Args:
        num_classes: number of classes K.
        channels: number of feature channels C.
        decay: share of the old value in the new one, in [0, 1).

    Raises:
        ValueError: if ``decay`` is outside [0, 1).
    """

    centers: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, channels: int, decay: float) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay}; expected a number in [0, 1)")
        self.decay = decay
        self.register_buffer("centers", torch.zeros(num_classes, channels))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))

    @property
    def seen(self) -> Tensor:
        """Bool ``(K,)``: classes that have had a value."""
        return self.counts > 0

    def blend(self, values: Tensor, present: Tensor) -> Tensor:
        """The averages as they will be after this step; changes nothing.

        Args:
            values: ``(K, C)`` means of this step; gradients flow through them.
            present: ``(K,)`` bool, classes that have a value this step.

        Returns:
            ``(K, C)``: moved averages of present classes, stored averages of the others (zeros for
            classes never seen).
        """
        stored = self.centers.to(values.dtype)
        moved = torch.lerp(values, stored, self.decay)
        moved = torch.where(self.seen.unsqueeze(1), moved, values)
        return torch.where(present.unsqueeze(1), moved, stored)

    @torch.no_grad()
    def update(self, values: Tensor, present: Tensor) -> None:
        """Stores what :meth:`blend` returns for the same arguments and counts the present classes.

        A class whose value is not finite (an overflow in half precision) is taken as absent: its average
        would stay so.
        """
        present = present & values.isfinite().all(dim=1)
        self.centers.copy_(self.blend(values, present))
        self.counts.add_(present.to(self.counts.dtype))
