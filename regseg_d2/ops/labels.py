"""Label maps as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

#: Ways of bringing label maps to the size of a feature map.
LABEL_RULES = ("center", "corner", "majority")


def downsample_labels(labels: Tensor, size: tuple[int, int], rule: str = "center") -> Tensor:
    """Brings label maps to the size of a feature map by nearest neighbour.

    A cell of the feature map covers ``H / h`` rows. ``"center"`` takes the pixel at the cell's center,
    source row ``floor((i + 1/2) * H / h)`` of output row ``i``: what ``F.interpolate(mode="nearest-exact")``
    means, and where predictions sit that are resized with ``align_corners=False``. ``"corner"`` takes the
    first pixel, ``floor(i * H / h)``, as ``mode="nearest"`` does. Both are computed in integers; labels
    never pass through floating point.

    Args:
        labels: class ids of shape ``(N, H, W)``.
        size: height and width ``(h, w)`` of the result.
        rule: ``"center"`` or ``"corner"``.

    Returns:
        Class ids of shape ``(N, h, w)``.
    """
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    rows, columns = (
        _sources(many, few, rule, labels.device) for many, few in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def _sources(many: int, few: int, rule: str, device: torch.device) -> Tensor:
    cells = torch.arange(few, device=device)
    if rule == "center":
        return (2 * cells + 1) * many // (2 * few)
    return cells * many // few


def majority_labels(labels: Tensor, size: tuple[int, int], num_classes: int, purity: float = 0.0) -> Tensor:
    """Brings label maps to the size of a feature map by vote.

    Every pixel that a cell touches has a vote, those of a cell that ends inside a pixel as well: rows
    ``floor(i * H / h)`` to ``ceil((i + 1) * H / h) - 1``, the cells of ``F.adaptive_avg_pool2d``. A cell gets
    the class of most of its valid pixels, the smallest one of several.

    Args:
        labels: class ids of shape ``(N, H, W)``; any value outside ``[0, num_classes)`` is void.
        size: height and width ``(h, w)`` of the result.
        num_classes: number of classes ``K``.
        purity: a cell is void where its class holds less than this share of all its pixels.

    Returns:
        Class ids of shape ``(N, h, w)``; -1 for a void cell. Takes ``(K + 1) N h w`` integers of memory, and
        a few for each vote.
    """
    height, width = size
    rows, in_rows = _windows(labels.shape[-2], height, labels.device)
    columns, in_columns = _windows(labels.shape[-1], width, labels.device)
    voters = labels[:, rows.flatten()[:, None], columns.flatten()].long()
    votes = (voters >= 0) & (voters < num_classes) & in_rows.flatten()[:, None] & in_columns.flatten()
    images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    cell_rows = torch.arange(height, device=labels.device).repeat_interleave(rows.shape[1])
    cell_columns = torch.arange(width, device=labels.device).repeat_interleave(columns.shape[1])
    # What is no vote is counted behind all classes. In one dimension, where adding is deterministic on a GPU.
    bins = images * (num_classes + 1) + torch.where(votes, voters, num_classes)
    bins = ((bins * height + cell_rows[:, None]) * width + cell_columns).flatten()
    counts = bins.new_zeros(len(labels) * (num_classes + 1) * height * width, dtype=torch.int32)
    counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))
    largest, classes = counts.view(-1, num_classes + 1, height, width)[:, :num_classes].max(dim=1)
    share = largest / (in_rows.sum(dim=1)[:, None] * in_columns.sum(dim=1))
    return torch.where((largest > 0) & (share >= purity), classes, -1)


def _windows(many: int, few: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels ``(few, window)`` that each cell of a side touches, and which of them it does touch.

    All windows have the length of the longest; what a shorter one has too many does not count.
    """
    cells = torch.arange(few, device=device)
    longest = many // few + (2 if many % few else 0)
    pixels = (cells * many // few)[:, None] + torch.arange(longest, device=device)
    return pixels.clamp(max=many - 1), pixels < (-(-(cells + 1) * many // few))[:, None]


def one_hot_labels(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Spreads labels over classes; a label that is no class (void) has no one in its column.

    Args:
        labels: class ids of shape ``(N, P)``, void is any value outside ``[0, num_classes)``.
        num_classes: number of classes ``K``.
        dtype: floating point type of the result.

    Returns:
        Tensor of shape ``(N, K, P)`` with zeros and ones.
    """
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    return (labels.unsqueeze(1) == classes).to(dtype)
