"""Sums, counts and centers of features per class."""

from __future__ import annotations

import torch
from torch import Tensor


def class_sums(features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the features of each class, image by image.

    Sums and counts are kept apart so that they can be added over images and processes *before* the
    one division that makes a mean.

    Args:
        features: ``(N, C, P)``, P pixels.
        one_hot: ``(N, K, P)`` of zeros and ones, a void pixel has no one.

    Returns:
        Sums ``(N, K, C)`` and counts ``(N, K)``, both of the type of ``features``.
    """
    sums = torch.bmm(one_hot, features.transpose(1, 2))
    return sums, one_hot.sum(dim=2)


def divide_by_counts(sums: Tensor, counts: Tensor) -> Tensor:
    """Turns sums into means; a class without a pixel gets zeros.

    Args:
        sums: ``(..., K, C)``.
        counts: ``(..., K)``.

    Returns:
        Means ``(..., K, C)``.
    """
    return sums / counts.clamp(min=1).unsqueeze(-1)
