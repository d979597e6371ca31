"""MDRL: several distributions per class, compared with pixels, voted and attended to.

Source: Yin, Zheng, Gu, Zhou, Chen, "Class-level Multiple Distributions Representation are Necessary for
Semantic Segmentation", sections 3.2 to 3.5. The authors have published no code.

Shapes: features are ``(B, Z, P)`` with P pixels an image, distributions ``(K, N, Z)`` are N unit vectors for
each of K classes, labels ``(B, P)`` are class ids or -1 for void. ``active`` ``(K,)`` says which classes have
distributions; the others take no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regseg_d2.ops.sampling import mix_bits

# A pixel whose feature is shorter than this has no direction: its cosines are 0, and so is its gradient.
_MIN_NORM = 1e-6
# Numbers that a block of similarities may have. On a CPU it shall stay in the cache between the passes over
# it; elsewhere a block is only there to bound the memory.
_BLOCK_NUMBERS = {"cpu": 2**19}
_MAX_BLOCK_NUMBERS = 2**28
# e^(1 / MIN_TEMPERATURE) times the number of distributions has to stay in the range of single precision.
MIN_TEMPERATURE = 0.02


class Similarities(NamedTuple):
    """What the losses need of the cosines between pixels and distributions.

    Attributes:
        best: ``(B, K, P)`` largest cosine to the distributions of each class, ``-s_{i,c}`` of Eq. 13; the
            lowest number for a class that is not active.
        own: ``(B, N, P)`` cosines to the distributions of the pixel's class; of class 0 for a void pixel.
        log_total: ``(B, P)`` log of the sum of ``exp(cosine / tau)`` over all distributions of active
            classes, ``log(A + B)`` of Eq. 15.
    """

    best: Tensor
    own: Tensor
    log_total: Tensor


def inverse_norms(features: Tensor) -> Tensor:
    """One over the length of each pixel's feature ``(B, P)``, 0 where it has no direction; no gradient."""
    squares = [block.detach().square().sum(dim=1) for block in features.split(2**10, dim=2)]
    norms = torch.cat(squares, dim=1).sqrt()
    return torch.where(norms > _MIN_NORM, 1.0 / norms, 0.0)


def similarities(
    features: Tensor, scale: Tensor, distributions: Tensor, active: Tensor, labels: Tensor, temperature: float
) -> Similarities:
    """Compares all pixels with all distributions, once for both losses and the clustering.

    The K * N cosines of all pixels are kept for the backward pass as one tensor. They are computed, and their
    gradient is, in blocks of pixels that stay in the processor's cache.

    Args:
        features: ``(B, Z, P)``, of any length: cosines are taken. Differentiable once.
        scale: :func:`inverse_norms` of the features.
        distributions: ``(K, N, Z)``, constants.
        active: ``(K,)`` bool.
        labels: ``(B, P)``.
        temperature: tau of Eq. 15, at least :data:`MIN_TEMPERATURE`.

    Raises:
        ValueError: if the temperature is out of its range.
    """
    if temperature < MIN_TEMPERATURE:
        raise ValueError(f"temperature is {temperature}; expected at least {MIN_TEMPERATURE}")
    return Similarities(
        *_Similarities.apply(features, scale, distributions, active, labels.clamp(min=0), temperature)
    )


class _Similarities(torch.autograd.Function):
    """See :func:`similarities`. Keeps ``exp(cosine / tau)``, one tensor a block."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        scale: Tensor,
        distributions: Tensor,
        active: Tensor,
        labels: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_classes, num_distributions, _ = distributions.shape
        rows = distributions.flatten(0, 1).expand(len(features), -1, -1)
        counted = active.to(rows.dtype).unsqueeze(1).expand(-1, num_distributions)
        counted = counted.reshape(-1).expand(len(features), 1, -1)
        lowest = torch.finfo(rows.dtype).min
        best, own, totals, kept = [], [], [], []
        for pixels in _blocks(features, num_classes * num_distributions):
            cosines = torch.bmm(rows, features[:, :, pixels]).mul_(scale[:, None, pixels])
            by_class = cosines.unflatten(1, (num_classes, num_distributions))
            best.append(by_class.amax(dim=2).masked_fill_(~active.view(1, -1, 1), lowest))
            own.append(by_class.gather(1, _own_rows(labels[:, pixels], num_distributions)).squeeze(1))
            exponentials = cosines.mul_(1.0 / temperature).exp_()
            totals.append(torch.bmm(counted, exponentials).squeeze(1))
            kept.append(exponentials)
        total = torch.cat(totals, dim=1)
        # Without any distribution the sum is empty; its logarithm never counts.
        total = torch.where(total > 0, total, 1.0)
        ctx.save_for_backward(features, scale, distributions, labels, total, *kept)
        ctx.temperature = temperature
        return torch.cat(best, dim=2), torch.cat(own, dim=2), total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, best: Tensor, own: Tensor, log_total: Tensor) -> tuple[Tensor | None, ...]:
        features, scale, distributions, labels, total, *kept = ctx.saved_tensors
        num_classes, num_distributions, _ = distributions.shape
        columns = distributions.flatten(0, 1).t().expand(len(features), -1, -1)
        factor = log_total / (total * ctx.temperature)
        gradient = torch.empty_like(features)
        for pixels, exponentials in zip(
            _blocks(features, num_classes * num_distributions), kept, strict=True
        ):
            # Rows of classes that are not active are zero in the distributions: no need to mask them.
            weights = exponentials * factor[:, None, pixels]
            by_class = weights.unflatten(1, (num_classes, num_distributions))
            _add_to_largest(by_class, exponentials.view_as(by_class), best[:, :, pixels])
            own_rows = _own_rows(labels[:, pixels], num_distributions)
            by_class.scatter_add_(1, own_rows, own[:, None, :, pixels])
            block = gradient[:, :, pixels]
            torch.bmm(columns, weights, out=block)
            _through_normalisation(block, features[:, :, pixels], scale[:, None, pixels])
        return gradient, None, None, None, None, None


def _blocks(features: Tensor, num_rows: int) -> Iterator[slice]:
    """Splits the pixels so that ``num_rows`` numbers for each of a block's pixels are not too many."""
    limit = _BLOCK_NUMBERS.get(features.device.type, _MAX_BLOCK_NUMBERS)
    size = max(64, limit // (len(features) * num_rows) // 16 * 16)
    for start in range(0, features.shape[2], size):
        yield slice(start, min(start + size, features.shape[2]))


def _own_rows(labels: Tensor, num_distributions: int) -> Tensor:
    """Indices ``(B, 1, N, P)`` of the pixel's class along dimension 1 of ``(B, K, N, P)``."""
    return labels[:, None, None, :].expand(-1, 1, num_distributions, -1)


def _add_to_largest(gradient: Tensor, values: Tensor, addend: Tensor) -> None:
    """Adds the gradient of the largest of N values, shared equally where several are the largest.

    Args:
        gradient: ``(B, K, N, P)``, changed in place.
        values: ``(B, K, N, P)``.
        addend: ``(B, K, P)`` gradients of ``values.amax(dim=2)``.
    """
    # Ones and zeros of the gradient's own type: mixing types takes several times as long.
    is_largest = torch.eq(values, values.amax(dim=2, keepdim=True), out=torch.empty_like(values))
    shared = addend / is_largest.sum(dim=2)
    gradient.addcmul_(is_largest, shared.unsqueeze(2))


def _through_normalisation(gradient: Tensor, features: Tensor, scale: Tensor) -> None:
    """Turns gradients of unit features into those of the features, in place.

    Args:
        gradient: ``(B, Z, P)``.
        features: ``(B, Z, P)``.
        scale: ``(B, 1, P)``, :func:`inverse_norms` of the features.
    """
    along = (gradient * features).sum(dim=1, keepdim=True) * scale.square()
    gradient.addcmul_(features, along, value=-1.0).mul_(scale)


def local_losses(best: Tensor, labels: Tensor) -> Tensor:
    """Class local consistency loss of each pixel, Eq. 14: the nearest distribution of each class competes.

    Args:
        best: see :class:`Similarities`.
        labels: ``(B, P)``.

    Returns:
        ``(B, P)``; 0 for a void pixel.
    """
    return F.cross_entropy(best, labels, ignore_index=-1, reduction="none")


def global_losses(own: Tensor, log_total: Tensor, temperature: float) -> Tensor:
    """Class global consistency loss of each pixel, Eq. 15: all distributions of its class against all others.

    Args:
        own: see :class:`Similarities`.
        log_total: see :class:`Similarities`.
        temperature: tau.

    Returns:
        ``(B, P)``; meaningless for a void pixel.
    """
    return log_total - torch.logsumexp(own / temperature, dim=1)


def first_largest(shares: Tensor) -> Tensor:
    """Number ``(B, P)`` of the largest of N shares ``(B, N, P)``, the first where several are.

    What ``argmax`` returns, which is slow over a dimension that is not the last.
    """
    # Floating point throughout: a minimum of integers is slow as well.
    numbers = torch.arange(shares.shape[1], device=shares.device, dtype=shares.dtype).view(1, -1, 1)
    is_largest = shares == shares.amax(dim=1, keepdim=True)
    return torch.where(is_largest, numbers, shares.shape[1]).amin(dim=1).long()


@torch.no_grad()
def sums_of_assigned(features: Tensor, scale: Tensor, slots: Tensor, num_slots: int) -> Tensor:
    """Sums the unit features that are assigned to each slot: the numerator of ``b_{c,n}`` in Eq. 8.

    Args:
        features: ``(B, Z, P)``.
        scale: :func:`inverse_norms` of the features.
        slots: ``(B, P)`` long in ``[0, num_slots]``; the last is for pixels that do not count.
        num_slots: number of slots S.

    Returns:
        ``(S, Z)``, of this process.
    """
    sums = features.new_zeros(*features.shape[:2], num_slots + 1)
    for pixels in _blocks(features, features.shape[1]):
        index = slots[:, None, pixels].expand(-1, features.shape[1], -1)
        sums.scatter_add_(2, index, features[:, :, pixels] * scale[:, None, pixels])
    return sums.sum(dim=0)[:, :num_slots].t()


def seed_directions(num_distributions: int, channels: int) -> Tensor:
    """Fixed, pseudo-random unit vectors ``(N, Z)``, the same on every machine; no generator is touched."""
    rows = mix_bits(torch.arange(num_distributions)).unsqueeze(1)
    bits = mix_bits(rows + torch.arange(channels))
    return F.normalize(bits.double() / 2**32 - 0.5, dim=1).float()


def vote_and_fuse(probabilities: Tensor, distributions: Tensor, fusion: Tensor) -> Tensor:
    """Feature voting, Eq. 9, and the fusion of its N maps to R_m.

    The i-th map is, at each pixel, the mean of the i-th distribution of every class, weighted by the classes'
    probabilities; the maps are concatenated and put through a 1x1 convolution. Both steps are linear, so that
    the convolution is applied to the distributions instead, once for all pixels: the same numbers without a
    map of N * Z channels.

    Args:
        probabilities: ``(B, K, h, w)`` softmax of the base prediction.
        distributions: ``(K, N, Z)``; zeros for a class without, which adds nothing to the maps.
        fusion: weights ``(O, N * Z)`` of the convolution.

    Returns:
        ``(B, O, h, w)``.
    """
    per_class = torch.matmul(fusion, distributions.flatten(1).t())
    return F.conv2d(probabilities, per_class[:, :, None, None])


def aggregate(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of R on R_m, Eq. 10 and the product in Eq. 11.

    Args:
        query: ``g_a(R)``, ``(B, E, h, w)``.
        key: ``g_b(R_m)``, ``(B, E, h, w)``.
        value: ``g_f(R_m)``, ``(B, E, h, w)``.

    Returns:
        ``(B, E, h, w)``, weighted by a softmax of the products over ``sqrt(E)``; E is half of R's channels.
    """
    attended = F.scaled_dot_product_attention(_as_rows(query), _as_rows(key), _as_rows(value))
    return attended.squeeze(1).transpose(1, 2).reshape(query.shape)


def _as_rows(x: Tensor) -> Tensor:
    """``(B, E, h, w)`` as ``(B, 1, P, E)``, contiguous for the kernels that never hold all (P, P) weights."""
    return x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
