"""Products of rows with the samples of their group, without a copy of the samples for each row.

Groups differ in size. A product of every row with every sample would be mostly waste, a loop over groups
makes a GPU wait, and samples gathered for each row fill the memory. Here rows of one group are put
into tiles of equal size, so that one batched product does all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regseg_d2.ops.sampling import group_order, largest

TILE_ROWS = 32


class _PixelRows(torch.autograd.Function):
    """Indexing whose gradient is written in the memory order of the map: twice as fast as autograd's."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        ctx.shape = maps.shape
        width = maps.shape[3]
        num_pixels = maps.shape[2] * width
        within = pixels % num_pixels
        return maps.permute(0, 2, 3, 1)[pixels // num_pixels, within // width, within % width]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (pixels,) = ctx.saved_tensors
        _, channels, height, width = ctx.shape
        num_pixels = height * width
        result = gradient.new_zeros(ctx.shape)
        first = pixels // num_pixels * (channels * num_pixels) + pixels % num_pixels
        steps = torch.arange(channels, device=pixels.device).unsqueeze(1) * num_pixels
        result.view(-1).index_add_(0, (first + steps).view(-1), gradient.t().reshape(-1))
        return result, None


def pixel_rows(maps: Tensor, pixels: Tensor) -> Tensor:
    """Features of some pixels; differentiable once.

    Args:
        maps: ``(N, C, h, w)``.
        pixels: ``(R,)`` pixel numbers in ``[0, N * h * w)``; ascending ones are read fastest.

    Returns:
        ``(R, C)``.
    """
    return _PixelRows.apply(maps, pixels)


@dataclass(frozen=True)
class Tiles:
    """Rows put into tiles, each tile of rows of one group.

    Attributes:
        places: ``(R,)`` place of each row in the tiles, counted over all; a row of no group has the place
            after the last one.
        groups: ``(T,)`` group of each tile; of an unused tile any.
        size: rows a tile.
    """

    places: Tensor
    groups: Tensor
    size: int

    def spread(self, rows: Tensor) -> Tensor:
        """Puts rows ``(R, ...)`` into tiles ``(T, size, ...)``; unused places are zero."""
        num_places = len(self.groups) * self.size
        # Rows of no group share the last place, which is cut off.
        spread = rows.new_zeros(num_places + 1, *rows.shape[1:]).index_copy(0, self.places, rows)
        return spread[:num_places].view(len(self.groups), self.size, *rows.shape[1:])

    def collect(self, tiles: Tensor) -> Tensor:
        """Takes values ``(T, size)`` back to rows ``(R,)``; zero for a row of no group."""
        return F.pad(tiles.reshape(-1), (0, 1)).index_select(0, self.places)

    def products(self, rows: Tensor, samples: Tensor) -> Tensor:
        """Dot products of rows ``(R, C)`` with the samples ``(G, S, C)`` of their group: ``(T, size, S)``."""
        return torch.bmm(self.spread(rows), samples.index_select(0, self.groups).transpose(1, 2))


def tile_groups(groups: Tensor, num_groups: int, size: int = TILE_ROWS) -> Tiles:
    """Puts rows into tiles; the number of tiles does not depend on how rows are spread over groups.

    Args:
        groups: ``(R,)`` group of each row, -1 for none.
        num_groups: number of groups G.
        size: rows a tile.
    """
    order = group_order(groups, num_groups)
    num_tiles = len(groups) // size + num_groups
    tiles_of_group = (order.counts + size - 1) // size
    ends = tiles_of_group.cumsum(0)
    first = F.pad((ends - tiles_of_group) * size, (0, 1), value=num_tiles * size)
    in_group = groups >= 0
    places = first[torch.where(in_group, groups, num_groups)] + order.rank_in_group() * in_group
    numbers = torch.arange(num_tiles, device=groups.device)
    return Tiles(places, torch.searchsorted(ends, numbers, right=True).clamp(max=num_groups - 1), size)


def log_sums_within_sets(
    rows: Tensor, columns: Tensor, sets: Tensor, ranks: Tensor, max_rank: int, num_columns: int
) -> tuple[Tensor, Tensor]:
    """For each row the log of a sum of ``exp(row . column)`` over the first rows of its set.

    The sum counts as one over ``num_columns`` columns: it is scaled by ``num_columns`` over the number of
    columns that the set has. Rows of a set are neighbours, so that a tile of rows meets all its columns in a
    window around it.

    Args:
        rows: ``(Q, C)``, sorted by set and, within it, by rank.
        columns: ``(Q, C)``, the same rows as they stand on the right side of the product.
        sets: ``(Q,)`` set of each row; negative for a row that is in none (such rows are last).
        ranks: ``(Q,)`` 0, 1, 2 ... within each set.
        max_rank: ranks are below this.
        num_columns: the columns of a set are its rows of a rank below this.

    Returns:
        Log sums and, for diagnostics, mean products without gradient, both ``(Q + 1,)`` or longer; the entry
        of a row without a set, and those from Q on, are finite and mean nothing.
    """
    longest = largest(torch.where(sets >= 0, ranks, 0), max_rank - 1)
    before, after = longest, min(num_columns - 1, longest)
    num_tiles = len(rows) // TILE_ROWS + 1
    end = num_tiles * TILE_ROWS - len(rows)
    tiles = F.pad(rows, (0, 0, 0, end)).view(num_tiles, TILE_ROWS, -1)
    size = before + TILE_ROWS + after
    windows = F.pad(columns, (0, 0, before, end + after)).unfold(0, size, TILE_ROWS)
    row_sets = F.pad(sets, (0, end), value=-1).view(num_tiles, TILE_ROWS, 1)
    column_sets = torch.where(ranks < num_columns, sets, -2)
    column_sets = F.pad(column_sets, (before, end + after), value=-2).unfold(0, size, TILE_ROWS).unsqueeze(1)
    counted = (row_sets == column_sets) & (row_sets >= 0)
    products = torch.bmm(tiles, windows)
    counts = counted.sum(dim=2).clamp(min=1)
    # The lowest number instead of -inf keeps a row without any column finite.
    masked = products.masked_fill(~counted, torch.finfo(products.dtype).min)
    log_sums = masked.logsumexp(dim=2) + (num_columns / counts.to(products.dtype)).log()
    means = (products.detach() * counted).sum(dim=2) / counts
    return log_sums.view(-1), means.view(-1)
