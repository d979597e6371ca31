"""Representation Calibration Head: pixel sets, class means, calibration terms and metric loss of RCH.

Source: Wang, Chu, Fu, Liu, Hu, "Renovate Yourself: Calibrating Feature Representation of Misclassified
Pixels for Semantic Segmentation", AAAI 2022. Where the published code does something else it is said at
the function.

Shapes: embeddings ``x`` are ``(N, D, P)`` with P pixels an image; labels and predictions are ``(N, P)``
class ids, void is -1. Pixels are never normalised as a tensor of their own: cosines are products of
unit vectors with the embeddings, times one over the length of each pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ERRORS = ("image", "batch")

# A pixel whose embedding is shorter than this has no direction: its cosines are 0, and so is their gradient.
_MIN_NORM = 1e-6


class PixelSets(NamedTuple):
    """The class whose TP, FN or FP each pixel is (Eq. 3), -1 for none; all ``(N, P)``.

    A misclassified pixel is in two sets: it is a false negative of the class it belongs to, and a false
    positive of the class it was taken for. A void pixel is in none.
    """

    true_positive: Tensor
    false_negative: Tensor
    false_positive: Tensor


def decouple(labels: Tensor, predicted: Tensor) -> PixelSets:
    """Image decoupling, Eq. 3.

    Args:
        labels: ``(N, P)`` class ids, void is -1.
        predicted: ``(N, P)`` classes of the largest logit (Eq. 2).
    """
    right = labels == predicted
    wrong = (labels >= 0) & ~right
    return PixelSets(
        true_positive=torch.where(right, labels, -1),
        false_negative=torch.where(wrong, labels, -1),
        false_positive=torch.where(wrong, predicted, -1),
    )


def class_counts(sets: PixelSets, num_classes: int) -> Tensor:
    """Sizes of the sets in each image: long ``(3, N, K)``, the rows are TP, FN and FP."""
    # Pixels of no set are counted in a column that is cut off.
    classes = torch.stack([torch.where(s >= 0, s, num_classes) for s in sets])
    counts = classes.new_zeros(*classes.shape[:2], num_classes + 1)
    return counts.scatter_add_(2, classes, torch.ones_like(classes))[..., :num_classes]


def membership(classes: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Which pixel is of which class.

    Args:
        classes: ``(N, P)`` class ids, -1 for none.
        rows: ``(R,)`` the classes in question.
        dtype: floating point type of the result.

    Returns:
        ``(N, R, P)`` of zeros and ones.
    """
    return (classes.unsqueeze(1) == rows.view(1, -1, 1)).to(dtype)


def unit_class_sums(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Sums unit embeddings over the pixels of each class of each image, for the means in Eq. 6 and 7.

    Args:
        x: ``(N, D, P)`` embeddings; differentiable once.
        members: ``(N, R, P)`` of zeros and ones.

    Returns:
        Sums ``(N, R, D)``, and one over the length of each pixel ``(N, P)``; both differentiable.
    """
    return _UnitClassSums.apply(x, members)


class _UnitClassSums(torch.autograd.Function):
    """See :func:`unit_class_sums`.

    By itself autograd would normalise the pixels, or take a second product for the gradient of the
    lengths. Here that gradient is read off the first one: three passes over the embeddings less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        norms = x.square().sum(dim=1).sqrt()
        inverse_norms = torch.where(norms > _MIN_NORM, 1.0 / norms, 0.0)
        weights = members * inverse_norms.unsqueeze(1)
        ctx.save_for_backward(x, weights, inverse_norms)
        return torch.bmm(weights, x.transpose(1, 2)), inverse_norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sums: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        x, weights, inverse_norms = ctx.saved_tensors
        gradient = torch.bmm(sums.transpose(1, 2), weights)
        # d(1 / |x|) = -x / |x|^3 dx, both for the weights and for the lengths that were returned.
        along = (gradient * x).sum(dim=1) + lengths * inverse_norms
        gradient.addcmul_(x, (along * inverse_norms.square()).unsqueeze(1), value=-1.0)
        return gradient, None


def cosines(x: Tensor, inverse_norms: Tensor, vectors: Tensor) -> Tensor:
    """Products of vectors with unit pixels, Eq. 5: cosines where the vectors are of unit length.

    Args:
        x: ``(N, D, P)`` embeddings.
        inverse_norms: ``(N, P)``, see :func:`unit_class_sums`.
        vectors: ``(N, M, D)``, those that the pixels of each image are compared with.

    Returns:
        ``(N, M, P)``.
    """
    return torch.bmm(vectors, x) * inverse_norms.unsqueeze(1)


def own_values(values: Tensor, members: Tensor) -> Tensor:
    """Takes of ``(N, R, P)`` the value of each pixel's own class: ``(N, P)``, 0 for a pixel of none."""
    return (values * members).sum(dim=1)


def calibration_terms(
    fn_cosine: Tensor | None, fp_cosine: Tensor | None, has_fn: Tensor, has_fp: Tensor
) -> tuple[Tensor, Tensor]:
    """FN compensation phi (Eq. 7) and FP penalty psi (Eq. 6) of each pixel, both in [0, 2].

    Neither the pixel nor the FN and FP pixels it is compared with are constants: "minimizing psi" pushes
    the FP pixels away from the anchor. The published code takes the cosine to the *direction of the mean*
    embedding; the paper, as we do, the mean of the cosines.

    Args:
        fn_cosine: ``(N, P)`` mean cosine to the FN pixels of the pixel's class; None switches phi off.
        fp_cosine: ``(N, P)`` mean cosine to its FP pixels; None switches psi off.
        has_fn: ``(N, P)`` bool, the pixel's class has FN pixels.
        has_fp: ``(N, P)`` bool, it has FP pixels.

    Returns:
        phi and psi, ``(N, P)`` or a zero that broadcasts to that; 0 where the class has none.
    """
    zero = torch.zeros((), device=has_fn.device)
    phi = zero if fn_cosine is None else torch.where(has_fn, 1.0 - fn_cosine, 0.0)
    psi = zero if fp_cosine is None else torch.where(has_fp, 1.0 + fp_cosine, 0.0)
    return phi, psi


def metric_losses(
    class_cosines: Tensor,
    known: Tensor,
    labels: Tensor,
    phi: Tensor,
    psi: Tensor,
    probability: Tensor,
    temperature: float,
    scale: float = 1.0,
) -> Tensor:
    """Metric loss of each pixel, Eq. 8: two softmax terms, one with phi and one with psi.

    Both share the sum over the other classes, so that one log-sum-exp over classes does: with ``R`` that
    of ``cos_l / tau`` over ``l != k``, each term is ``softplus(R - (cos_k / tau - (1 - p) * phi))``.

    Args:
        class_cosines: ``(N, K, P)`` cosines to the prototypes.
        known: ``(K,)`` bool, classes with a prototype; the others take no part in the softmax.
        labels: ``(N, P)`` class ids, void is -1.
        phi: FN compensation, ``(N, P)`` or a scalar.
        psi: FP penalty, likewise.
        probability: ``(N, P)`` softmax probability ``p_ik`` of the pixel's class, a constant.
        temperature: tau.
        scale: factor of both calibration terms; 1 in the paper. The published code adds them before it
            divides by tau, with a factor of 1/8: that is 0.25 at its tau of 0.5.

    Returns:
        ``(N, P)``; zero where the pixel is void or its class has no prototype.
    """
    num_classes = class_cosines.shape[1]
    logits = class_cosines / temperature
    safe_labels = labels.clamp(min=0)
    own = logits.gather(1, safe_labels.unsqueeze(1)).squeeze(1)
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    counted = known.view(1, -1, 1) & (labels.unsqueeze(1) != classes)
    # The lowest number instead of -inf keeps a pixel without any other class finite: its loss is 0.
    others = logits.masked_fill(~counted, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    hardness = scale * (1.0 - probability)
    losses = -F.logsigmoid(own - hardness * phi - others) - F.logsigmoid(own - hardness * psi - others)
    takes_part = (labels >= 0) & known[safe_labels]
    return losses * takes_part
