"""Counting which class was predicted for which."""

from __future__ import annotations

import torch
from torch import Tensor

# An ignore value between the classes and this has a column of its own; a larger one would make a table of
# mostly empty columns.
_LARGEST_COLUMN = 1023


def confusion_counts(predicted: Tensor, label: Tensor, num_classes: int, ignore_value: int) -> Tensor | None:
    """Counts the pixels of an image.

    Args:
        predicted: ``(H, W)`` integers from 0 to K - 1.
        label: ``(H, W)`` integers on the same device: 0 to K - 1, or the ignore value.
        num_classes: K.
        ignore_value: label of pixels that are not counted.

    Returns:
        ``(K, K)`` int64 counts, ``[predicted, true]``; None if the label holds another value.
    """
    if label.dtype != torch.int64:
        label = label.to(torch.int32)
    if not num_classes <= ignore_value <= _LARGEST_COLUMN:
        is_void = label == ignore_value
        label = torch.where(label >= num_classes, -1, label).masked_fill(is_void, num_classes)
        ignore_value = num_classes
    columns = ignore_value + 1
    lowest, highest = (int(value) for value in torch.aminmax(label))
    if lowest < 0 or highest >= columns:
        return None
    pairs = torch.add(label, predicted, alpha=columns).flatten()
    table = torch.bincount(pairs, minlength=num_classes * columns).view(num_classes, columns)
    counts = table[:, :num_classes]
    if int(counts.sum() + table[:, ignore_value].sum()) != label.numel():
        return None
    return counts
