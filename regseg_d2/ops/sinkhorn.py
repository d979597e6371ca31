"""Balanced assignment of pixels to the centers of their class, by Sinkhorn-Knopp iterations.

Source: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013; as a
clustering of pixels in Zhou et al., "Rethinking Semantic Segmentation: A Prototype View", CVPR 2022, and
in Yin et al., "Class-level Multiple Distributions Representation are Necessary for Semantic Segmentation"
(MDRL), Eq. 6 and 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum_constant

MIN_SMOOTHNESS = 0.005


@torch.no_grad()
def sinkhorn_assignment(similarities: Tensor, one_hot: Tensor, smoothness: float, iterations: int) -> Tensor:
    """Shares each pixel among the N centers of its class so that a class uses its centers equally.

    Every class is a transport problem of its own, over its pixels of all processes; all are solved at
    once, as a pixel has similarities to the centers of its own class only. An iteration scales the rows
    (Eq. 7's u: the pixels of a class on one of its centers) to equal sums, then the columns (v: the shares
    of a pixel) to 1. It is a collective, ``iterations`` times.

    Args:
        similarities: ``(B, N, P)`` cosines of each pixel to the centers of its class; anything finite for a
            void pixel.
        one_hot: ``(B, K, P)`` labels; a void pixel has no one.
        smoothness: lambda, at least :data:`MIN_SMOOTHNESS`: below it the exponentials leave the range of
            double precision.
        iterations: number of iterations, at least 1.

    Returns:
        Shares ``(B, N, P)`` in double precision; those of a pixel sum to 1, those of a void pixel are 0.

    Raises:
        ValueError: if ``smoothness`` or ``iterations`` is out of its range.
    """
    if smoothness < MIN_SMOOTHNESS or iterations < 1:
        raise ValueError(
            f"smoothness is {smoothness} and iterations are {iterations}; expected at least "
            f"{MIN_SMOOTHNESS} and 1"
        )
    labels = one_hot.double()
    # A constant factor has no effect on the result: with the largest cosine taken off nothing overflows.
    shares = ((similarities.double() - 1.0) / smoothness).exp()
    for _ in range(iterations):
        rows = all_reduce_sum_constant(torch.bmm(labels, shares.transpose(1, 2)).sum(dim=0))
        # (N, K) x (K, P): each pixel takes the factors of its class; void pixels get zeros.
        shares = shares * torch.matmul(_inverse(rows).t(), labels)
        shares = shares * _inverse(shares.sum(dim=1, keepdim=True))
    return shares


def _inverse(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, 1.0 / sums, 0.0)
