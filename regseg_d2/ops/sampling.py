"""Drawing members of groups at random: no loop over groups, no shape that depends on data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MASK = 0xFFFFFFFF


def mix_bits(values: Tensor) -> Tensor:
    """A 32-bit integer hash: near inputs give unrelated outputs, each output is hit once.

    The multipliers are those of Chris Wellons' "lowbias32" (public domain, Hash Function Prospector).

    Args:
        values: long, any shape; the lowest 32 bits count.

    Returns:
        Long in ``[0, 2**32)``, of the same shape.
    """
    x = (values + 0x9E3779B9) & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


@dataclass(frozen=True)
class GroupOrder:
    """Items sorted by group.

    Attributes:
        items: ``(M,)`` item numbers, those of group 0 first; items of no group are last.
        starts: ``(G,)`` where each group begins in ``items``.
        counts: ``(G,)`` number of items in each group.
    """

    items: Tensor
    starts: Tensor
    counts: Tensor

    def rank_in_group(self) -> Tensor:
        """``(M,)``: place of each item in its group; meaningless for an item of no group."""
        positions = torch.arange(len(self.items), device=self.items.device)
        ends = self.starts + self.counts
        groups = torch.searchsorted(ends, positions, right=True)
        # The last of these is where the items of no group start.
        ranks = positions - F.pad(ends, (1, 0))[groups]
        return torch.empty_like(ranks).scatter_(0, self.items, ranks)

    def draw(self, num_samples: int, replacement_bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Takes the first ``num_samples`` items of each group.

        Args:
            num_samples: samples S of each group.
            replacement_bits: ``(G, S)`` long in ``[0, 2**32)``: a group with fewer than S items is drawn
                from with replacement. None: its samples end where its items do.

        Returns:
            Items ``(G, S)`` and bool ``(G, S)``, which of them count. A group without an item has none.
        """
        slots = torch.arange(num_samples, device=self.items.device).expand(len(self.counts), -1)
        counts = self.counts.unsqueeze(1)
        if replacement_bits is None:
            valid = slots < counts
        else:
            valid = (counts > 0).expand_as(slots)
            slots = torch.where(counts >= num_samples, slots, (replacement_bits * counts) >> 32)
        positions = torch.where(valid, self.starts.unsqueeze(1) + slots, 0)
        if len(self.items) == 0:
            return positions, valid
        return self.items[positions], valid


def group_order(groups: Tensor, num_groups: int, bits: Tensor | None = None) -> GroupOrder:
    """Sorts items by group, and within a group at random.

    Args:
        groups: ``(M,)`` long; an item outside ``[0, num_groups)`` is in no group.
        num_groups: number of groups G.
        bits: ``(M,)`` long in ``[0, 2**32)`` that decide the order within a group; None keeps the order
            of the items.
    """
    groups = torch.where((groups >= 0) & (groups < num_groups), groups, num_groups)
    keys = groups if bits is None else (groups << 32) + bits
    items = keys.argsort(stable=True)
    counts = torch.zeros(num_groups + 1, dtype=torch.long, device=groups.device)
    counts = counts.scatter_add_(0, groups, torch.ones_like(groups))[:num_groups]
    return GroupOrder(items, counts.cumsum(0) - counts, counts)


def compact(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the items that a mask holds, for work that only they need.

    On the CPU exactly these. On other devices their number would have to be waited for, so that all
    items come back, those of the mask first.

    Args:
        mask: ``(M,)`` bool.

    Returns:
        Item numbers ``(R,)`` and bool ``(R,)``, which of them the mask holds.
    """
    if mask.device.type == "cpu":
        items = mask.nonzero().squeeze(1)
        return items, torch.ones_like(items, dtype=torch.bool)
    items = mask.logical_not().to(torch.uint8).argsort(stable=True)
    return items, mask[items]


def largest(values: Tensor, limit: int) -> int:
    """An upper bound of some numbers, for sizes of tensors.

    On the CPU their maximum, where that is below ``limit``. On other devices it would have to be waited
    for, so that the bound is ``limit`` itself.

    Args:
        values: long, any shape, not negative.
        limit: what is known of them beforehand.
    """
    if values.device.type == "cpu":
        return min(int(values.max()), limit) if values.numel() else 0
    return limit
