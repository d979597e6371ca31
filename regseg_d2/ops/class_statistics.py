"""Sums, counts and centers of features per class."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class ClassStatistics(NamedTuple):
    """What losses on class centers need of the pixels.

    Attributes:
        features: the features ``(N, C, P)``, for further use of them: their gradients are gathered in
            one pass then.
        squares: ``(N, P)`` zeros with the gradient of each pixel's squared length. Its value would serve no
            loss: what is about a center has to be measured from there (``ops/car.py``).
        sums: ``(N, K, C)`` sums over the pixels of each class.
        counts: ``(N, K)`` numbers of those pixels.
    """

    features: Tensor
    squares: Tensor
    sums: Tensor
    counts: Tensor


def class_statistics(features: Tensor, one_hot: Tensor) -> ClassStatistics:
    """Class sums, and squared lengths for their gradient; backward writes the features' gradient once.

    Args:
        features: ``(N, C, P)``, P pixels.
        one_hot: ``(N, K, P)`` of zeros and ones, a void pixel has no one.
    """
    features, squares, sums = _Statistics.apply(features, one_hot)
    return ClassStatistics(features, squares, sums, one_hot.sum(dim=2))


class _Statistics(torch.autograd.Function):
    """Autograd by itself would add up three tensors of the size of the features, and make a fourth."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, one_hot)
        squares = features.new_zeros(features.shape[0], features.shape[2])
        return features.view_as(features), squares, torch.bmm(one_hot, features.transpose(1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_features: Tensor | None, of_squares: Tensor | None, of_sums: Tensor | None
    ) -> tuple[Tensor | None, None]:
        features, one_hot = ctx.saved_tensors
        total = of_features
        if of_squares is not None:
            scale = 2 * of_squares.unsqueeze(1)
            total = features * scale if total is None else torch.addcmul(total, features, scale)
        if of_sums is not None:
            weights = of_sums.transpose(1, 2)
            if total is None:
                total = torch.bmm(weights, one_hot)
            elif total is of_features:
                total = torch.baddbmm(total, weights, one_hot)
            else:
                total = total.baddbmm_(weights, one_hot)  # a tensor of our own
        return total, None


def divide_by_counts(sums: Tensor, counts: Tensor) -> Tensor:
    """Turns sums into means; a class without a pixel gets zeros.

    Args:
        sums: ``(..., K, C)``.
        counts: ``(..., K)``.

    Returns:
        Means ``(..., K, C)``.
    """
    return sums / counts.clamp(min=1).unsqueeze(-1)
