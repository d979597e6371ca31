"""Label maps as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def downsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings label maps to the size of a feature map by nearest neighbour.

    The source row of output row ``i`` is ``floor(i * H / h)``, computed in integers, which is what
    ``F.interpolate(mode="nearest")`` takes; labels never pass through floating point.

    Args:
        labels: class ids of shape ``(N, H, W)``.
        size: height and width ``(h, w)`` of the result.

    Returns:
        Class ids of shape ``(N, h, w)``.
    """
    height, width = labels.shape[-2:]
    if (height, width) == tuple(size):
        return labels
    rows = torch.arange(size[0], device=labels.device) * height // size[0]
    columns = torch.arange(size[1], device=labels.device) * width // size[1]
    return labels[:, rows[:, None], columns]


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
