"""Targets of networks that classify masks: one mask for each class that occurs in an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def occurring_classes(labels: Tensor, num_classes: int) -> Tensor:
    """The classes of an image's pixels, in ascending order.

    How many there are is the size of the result: ask before labels go to a GPU, which would have to be
    waited for.

    Args:
        labels: ``(H, W)`` class ids; what is no class is void.
        num_classes: number of classes K.

    Returns:
        ``(M,)`` class ids, on the CPU.
    """
    is_class = (labels >= 0) & (labels < num_classes)
    counts = torch.bincount(torch.where(is_class, labels, num_classes).flatten().long())
    return counts[:num_classes].nonzero().flatten().cpu()


def mask_targets(
    labels: Tensor, classes: Sequence[Tensor], dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Masks of the classes of each image. Void pixels and padding are in none.

    Args:
        labels: ``(N, H, W)`` class ids.
        classes: of each image the classes that occur, ``(M_i,)``, on the CPU.
        dtype: of the masks.

    Returns:
        Of each image masks ``(M_i, H, W)`` of zeros and ones, and class ids ``(M_i,)``, where the labels are.
    """
    counts = [len(ids) for ids in classes]
    ids = torch.cat(list(classes)).to(labels.device, non_blocking=True)
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    of_image = labels[images.to(labels.device, non_blocking=True)]
    masks = (of_image == ids[:, None, None]).to(dtype)
    return masks.split(counts), ids.split(counts)
