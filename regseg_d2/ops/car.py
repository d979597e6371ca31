"""Class-Aware Regularizations: the three losses of CAR.

Source: Huang, Kang, Jia, He, Chen, Liu, "CAR: Class-aware Regularizations for Semantic
Segmentation", ECCV 2022, sections 3.1 to 3.3. Where the published TensorFlow code does something
else it is said at the function.

Shapes: features ``x`` are ``(N, C, P)`` with P pixels an image; centers are ``(G, K, C)`` and
``present`` is ``(G, K)``, where G is 1 (centers of the whole batch) or N (of each image).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum, global_mean, world_size
from regseg_d2.ops.class_statistics import ClassStatistics

REDUCTIONS = ("mse", "squared_mean")
CHANNELS_AT_A_TIME = 64


class Deviations(NamedTuple):
    """How the pixels lie about the center of their class, in numbers without a gradient.

    Meaningless on void pixels.

    Attributes:
        squares: ``(N, P)`` squared distance of each pixel to the center of its class.
        origin: ``(G, 1, C)`` mean of the centers of the classes that take part.
        along: ``(N, P)`` product of ``origin`` with the pixel minus the center of its class.
    """

    squares: Tensor
    origin: Tensor
    along: Tensor


def deviations(x: Tensor, centers: Tensor, present: Tensor, labels: Tensor) -> Deviations:
    """Measures pixels from the centers of their classes.

    Squares and products of the features themselves lose these numbers in float32, where classes are compact
    or far from zero: differences first, products after.

    Args:
        x: ``(N, C, P)`` features.
        centers: ``(G, K, C)`` class centers.
        present: ``(G, K)`` bool, classes that take part.
        labels: ``(N, P)`` class ids; those that are no class are void.
    """
    x, centers = x.detach(), centers.detach()
    groups, num_classes, _ = centers.shape
    images, _, pixels = x.shape
    counted = present.unsqueeze(2)
    origin = (centers * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    rows = origin.expand(images, -1, -1)
    table = centers.permute(2, 0, 1).reshape(-1, groups * num_classes)
    columns = labels.clamp(0, num_classes - 1)
    if groups > 1:
        columns = columns + num_classes * torch.arange(images, device=labels.device).unsqueeze(1)
    columns = columns.flatten()
    squares = x.new_zeros(images, pixels)
    along = x.new_zeros(images, 1, pixels)
    # Some channels at a time: what is between stays in the cache.
    for start in range(0, x.shape[1], CHANNELS_AT_A_TIME):
        channels = slice(start, start + CHANNELS_AT_A_TIME)
        own_center = table[channels].index_select(1, columns).view(-1, images, pixels).transpose(0, 1)
        difference = own_center.sub_(x[:, channels])
        along.baddbmm_(rows[:, :, channels], difference, alpha=-1)
        squares += difference.square_().sum(dim=1)
    return Deviations(squares, origin, along.squeeze(1))


def reduce_penalty(penalty: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """Reduces the penalties of pixels or rows of all processes to one loss (``f_mse``).

    Args:
        penalty: non-negative penalties of any shape.
        weight: ones for entries that count and zeros for the others; broadcasts to ``penalty``.
        reduction: ``"mse"`` is the mean of the squares (paper, Eq. 2, 7, 14), ``"squared_mean"`` the
            square of the mean (published code).

    Returns:
        A scalar; its mean over processes is the loss of the whole batch. Zero, and attached to the
        graph, where nothing counts.

    Raises:
        ValueError: if ``reduction`` is unknown.
    """
    count = weight.expand_as(penalty).sum()
    if reduction == "mse":
        return global_mean((penalty.square() * weight).sum(), count)
    if reduction == "squared_mean":
        # The square needs the whole batch's mean: each process holds the same one.
        mean = all_reduce_sum(global_mean((penalty * weight).sum(), count)) / world_size()
        return mean.square()
    raise ValueError(f"reduction is {reduction!r}; expected one of {REDUCTIONS}")


def intra_c2p_loss(
    statistics: ClassStatistics, centers: Tensor, one_hot: Tensor, about_centers: Deviations
) -> Tensor:
    """Intra-class center-to-pixel loss, Eq. 2 and 3.

    The published code counts void pixels in the mean (as zeros); here the mean is over valid pixels.

    The gradient is that of ``|x|^2 - 2 x mu + |mu|^2``, whose middle term needs the class sums only: no
    second tensor of the size of ``x`` comes into being. The value is that of the differences: the three
    terms would lose it where a class is compact, which is what the loss trains for.

    Args:
        statistics: features ``x``, their class sums, counts and squared lengths.
        centers: ``(G, K, C)`` class centers.
        one_hot: ``(N, K, P)`` labels.
        about_centers: :func:`deviations` of the same.

    Returns:
        A scalar, in squared units of the features.
    """
    x, lengths, sums, counts = statistics
    valid = one_hot.sum(dim=1)
    squares = (lengths * valid).sum()
    products = (centers * sums).sum()
    center_squares = (centers.square().sum(dim=2) * counts).sum()
    graph = squares - 2 * products + center_squares
    value = (about_centers.squares * valid).sum()
    return global_mean(value + (graph - graph.detach()), valid.sum() * x.shape[1])


def intra_c2p_loss_of_means(x: Tensor, centers: Tensor, one_hot: Tensor) -> Tensor:
    """The intra-class loss of the published code: the square of the mean absolute difference.

    The mean is over valid pixels, as in :func:`intra_c2p_loss`.

    Args:
        x: ``(N, C, P)`` features.
        centers: ``(G, K, C)`` class centers.
        one_hot: ``(N, K, P)`` labels.

    Returns:
        A scalar, in squared units of the features.
    """
    own_center = torch.matmul(centers.transpose(1, 2), one_hot)
    valid = one_hot.sum(dim=1).unsqueeze(1)
    return reduce_penalty((own_center - x).abs(), valid, "squared_mean")


def center_similarities(centers: Tensor, present: Tensor, detach_key: bool = True) -> Tensor:
    """Inter-class relation of class centers, Eq. 4: ``softmax(mu mu^T / sqrt(C))``.

    Args:
        centers: ``(G, K, C)`` class centers.
        present: ``(G, K)`` bool; the columns of the other classes take no part in the softmax.
        detach_key: no gradient through the second operand (published code).

    Returns:
        ``(G, K, K)``; the softmax is over the last index.
    """
    key = centers.detach() if detach_key else centers
    products = torch.matmul(centers, key.transpose(1, 2)) / math.sqrt(centers.shape[-1])
    return _masked_softmax(products, present.unsqueeze(1), dim=2)


def inter_c2c_loss(
    centers: Tensor,
    present: Tensor,
    epsilon: float = 0.5,
    reduction: str = "mse",
    detach_key: bool = True,
) -> Tensor:
    """Inter-class center-to-center loss, Eq. 4 to 7.

    Args:
        centers: ``(G, K, C)`` class centers. With G = 1 they are the same on all processes.
        present: ``(G, K)`` bool, classes that take part; rows of the others do not count.
        epsilon: epsilon_0; entries are penalised above ``epsilon / (K - 1)``, K all classes.
        reduction: see :func:`reduce_penalty`.
        detach_key: see :func:`center_similarities`.

    Returns:
        A scalar without unit.
    """
    num_classes = centers.shape[1]
    similarities = center_similarities(centers, present, detach_key)
    others = present.unsqueeze(1) & ~torch.eye(num_classes, dtype=torch.bool, device=centers.device)
    penalty = _excess(similarities, others, epsilon / max(num_classes - 1, 1)).sum(dim=2)
    return reduce_penalty(penalty, present.to(penalty.dtype), reduction)


def inter_c2p_loss(
    x: Tensor,
    centers: Tensor,
    present: Tensor,
    one_hot: Tensor,
    about_centers: Deviations,
    epsilon: float = 0.25,
    scale: bool = True,
    reduction: str = "mse",
) -> Tensor:
    """Inter-class center-to-pixel loss, Eq. 8 to 14.

    Args:
        x: ``(N, C, P)`` features.
        centers: ``(G, K, C)`` class centers.
        present: ``(G, K)`` bool, classes that take part in the softmax.
        one_hot: ``(N, K, P)`` labels.
        about_centers: :func:`deviations` of the same.
        epsilon: epsilon_1; entries are penalised above ``epsilon / (K - 1)``, K all classes.
        scale: divide the products by ``sqrt(C)``. The paper does not, its published code does.
        reduction: see :func:`reduce_penalty`.

    Returns:
        A scalar without unit.
    """
    num_classes, channels = centers.shape[1:]
    # The softmax does not see what all products of a pixel have in common: origin * (center of its class).
    products = _ProductsFromOrigin.apply(x, centers, about_centers.origin, about_centers.along)
    squares = centers.square().sum(dim=2)
    shifted = ((centers - about_centers.origin) * centers).sum(dim=2).detach()
    own_products = (shifted + (squares - squares.detach())).unsqueeze(2)
    is_own = one_hot > 0
    products = torch.where(is_own, own_products, products)
    if scale:
        products = products / math.sqrt(channels)
    similarities = _masked_softmax(products, present.unsqueeze(2), dim=1)
    others = present.unsqueeze(2) & ~is_own
    penalty = _excess(similarities, others, epsilon / max(num_classes - 1, 1)).sum(dim=1)
    return reduce_penalty(penalty, one_hot.sum(dim=1), reduction)


class _ProductsFromOrigin(torch.autograd.Function):
    """``centers * x`` less the same for all classes, ``origin * (center of the class of x)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centers: Tensor, origin: Tensor, along: Tensor) -> Tensor:
        ctx.save_for_backward(x, centers)
        shifted = (centers - origin).expand(x.shape[0], -1, -1)
        return torch.baddbmm(along.unsqueeze(1), shifted, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, centers = ctx.saved_tensors
        of_x = torch.matmul(centers.transpose(1, 2), gradient) if ctx.needs_input_grad[0] else None
        of_centers = None
        if ctx.needs_input_grad[1]:
            of_centers = torch.bmm(gradient, x.transpose(1, 2))
            of_centers = of_centers.sum(0, keepdim=True) if centers.shape[0] == 1 else of_centers
        return of_x, of_centers, None, None


def _excess(similarities: Tensor, counted: Tensor, threshold: float) -> Tensor:
    return torch.relu(similarities - threshold) * counted


def _masked_softmax(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    # The lowest number instead of -inf keeps a row without any class finite; its entries never count.
    return values.masked_fill(~mask, torch.finfo(values.dtype).min).softmax(dim=dim)
