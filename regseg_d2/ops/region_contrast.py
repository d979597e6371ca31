"""Region-aware contrast: region centers and their loss against stored region centers.

Source: Hu, Cui, Wang, "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
section 3.2. Where the published code does something else it is said at the function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regseg_d2.ops.stored_contrast import Contrast, Memory, contrast_with_stored

CENTERS = ("dynamic", "gt_mean", "predicted")
REDUCTIONS = ("mean", "class_sum")


def dynamic_weights(labels: Tensor, predictions: Tensor, confidence: Tensor) -> Tensor:
    """Weights of dynamic sampling, Eq. 3: little for what the network is sure of already.

    Args:
        labels: ``(N, h, w)`` class ids.
        predictions: ``(N, h, w)`` predicted classes.
        confidence: ``(N, h, w)`` probability of the predicted class.

    Returns:
        ``(N, h, w)``: ``1 - confidence`` on pixels predicted right (easy positives), 1 on pixels
        predicted wrong (hard positives); meaningless where the label is void.
    """
    return torch.where(predictions == labels, (1 - confidence).clamp(min=0), 1.0)


def unit_centers(centers: Tensor) -> tuple[Tensor, Tensor]:
    """Brings region centers to length 1.

    A center of length zero has no direction and takes no part: a class without a pixel, or, in Eq. 3,
    one of whose pixels the network is sure to the last digit.

    Args:
        centers: ``(N, K, C)``.

    Returns:
        Unit vectors ``(N, K, C)``, zeros where there is none, and bool ``(N, K)``: which there are.
    """
    present = centers.detach().square().sum(dim=2) > 0
    # The inner where keeps the gradient of the root finite where the center is zero.
    safe = torch.where(present.unsqueeze(2), centers, 1.0)
    unit = safe / torch.linalg.vector_norm(safe, dim=2, keepdim=True)
    return torch.where(present.unsqueeze(2), unit, 0.0), present


def sums_by_class(
    losses: Tensor, counted: Tensor, classes: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Sums the losses of regions class by class.

    Args:
        losses: ``(R,)`` losses of region centers.
        counted: ``(R,)`` of zeros and ones: which of them count.
        classes: ``(R,)`` long, their classes.
        num_classes: number of classes K.

    Returns:
        Sums ``(K,)``, differentiable, and how many centers are behind each ``(K,)``.
    """
    zeros = losses.new_zeros(num_classes)
    return zeros.index_add(0, classes, losses * counted), zeros.index_add(0, classes, counted)


def region_contrast(
    queries: Tensor,
    classes: Tensor,
    samples: Tensor,
    filled: Tensor,
    temperature: float,
    own_slots: Tensor | None = None,
) -> Contrast:
    """Contrasts region centers with stored ones, Eq. 4: the mean over the positives.

    (The published code adds up the banks of the other classes element by element instead of their
    exponentials.)

    Args:
        queries: ``(R, C)`` unit vectors; gradients flow to these alone.
        classes: ``(R,)`` long, their classes.
        samples: ``(K, S, C)`` stored unit vectors, S a class, zeros where not filled. Any floating type;
            they may be overwritten before the backward pass.
        filled: ``(K, S)`` bool, slots that hold a sample.
        temperature: t, at least ``MIN_TEMPERATURE``.
        own_slots: ``(R,)`` long: the slot that holds the region itself, which is not its own positive.
            None: it is not stored.
    """
    return contrast_with_stored(queries, classes, [Memory(samples, filled)], temperature, own_slots)
