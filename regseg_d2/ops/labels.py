"""Label maps as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

#: Ways of bringing label maps to the size of a feature map.
LABEL_RULES = ("center", "corner", "majority")


def downsample_labels(labels: Tensor, size: tuple[int, int], rule: str = "corner") -> Tensor:
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

    A pixel belongs to the cell that its upper left corner lies in, row ``i`` to ``floor(i * h / H)``. A cell
    gets the class of most of its valid pixels, the smallest one of several.

    Args:
        labels: class ids of shape ``(N, H, W)``; any value outside ``[0, num_classes)`` is void.
        size: height and width ``(h, w)`` of the result, at most those of the labels.
        num_classes: number of classes ``K``.
        purity: a cell is void where its class holds less than this share of its valid pixels.

    Returns:
        Class ids of shape ``(N, h, w)``; -1 for a void cell. Takes ``(K + 1) N h w`` integers of memory.
    """
    number, height, width = labels.shape
    rows = torch.arange(height, device=labels.device) * size[0] // height
    columns = torch.arange(width, device=labels.device) * size[1] // width
    num_cells = size[0] * size[1]
    cells = (rows[:, None] * size[1] + columns).flatten()
    is_class = (labels >= 0) & (labels < num_classes)
    # Void pixels are counted behind all classes.
    votes = torch.where(is_class, labels, num_classes).flatten(1).long() * num_cells + cells
    counts = labels.new_zeros(number, (num_classes + 1) * num_cells, dtype=torch.int32)
    counts.scatter_add_(1, votes, torch.ones_like(votes, dtype=torch.int32))
    counts = counts.view(number, num_classes + 1, *size)[:, :num_classes]
    largest, classes = counts.max(dim=1)
    valid = counts.sum(dim=1)
    return torch.where((largest > 0) & (largest >= purity * valid), classes, -1)


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
