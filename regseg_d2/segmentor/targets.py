"""What networks and regularizers train on, out of what mappers give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, UserError


def require_class_masks(cfg: CfgNode, model: nn.Module) -> None:
    """Refuses to train a network that classifies masks on samples that have none.

    Such a network has a method ``prepare_targets``, which reads ``instances``, as Mask2Former, MaskFormer and
    what derives from them. On samples without, they fail inside their loss.

    Raises:
        ConfigError: ``model`` is one, and ``INPUT.CLASS_MASKS`` is False.
    """
    if hasattr(model, "prepare_targets") and not cfg.INPUT.CLASS_MASKS:
        raise ConfigError(
            f"INPUT.CLASS_MASKS is False, and MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} trains "
            "on 'instances', which the mapper gives with that key alone: set INPUT.CLASS_MASKS True."
        )


def semantic_labels(sample: dict[str, Any], ignore_index: int) -> Tensor:
    """Class ids ``(H, W)`` of an input: its ``sem_seg``, or painted from its ``instances``.

    Args:
        sample: an input of Detectron2's training format.
        ignore_index: label of pixels without an instance.

    Raises:
        UserError: it has neither, or instances without masks.
    """
    if "sem_seg" in sample:
        return sample["sem_seg"]
    instances = sample.get("instances")
    if instances is None or not (instances.has("gt_masks") and instances.has("gt_classes")):
        raise UserError(
            f"a training input has {sorted(sample)}; regularizers need the class of each pixel: 'sem_seg', "
            "or 'instances' with gt_masks and gt_classes. Take a mapper that reads one of them."
        )
    return _paint(instances, ignore_index)


def _paint(instances: Instances, ignore_index: int) -> Tensor:
    """Paints the larger instances first, so that the smaller ones are seen where they overlap."""
    masks = _as_tensor(instances.gt_masks, instances.image_size)
    classes = instances.gt_classes.to(masks.device)
    if not len(masks):
        return torch.full(instances.image_size, ignore_index, dtype=torch.long, device=masks.device)
    order = masks.flatten(1).sum(1).argsort(stable=True)  # the smallest first, and the first one counts
    masks, classes = masks[order], classes[order]
    labels = classes[masks.int().argmax(0)].long()
    return labels.masked_fill(~masks.any(0), ignore_index)


def _as_tensor(masks: Any, size: Sequence[int]) -> Tensor:
    if isinstance(masks, PolygonMasks):
        bitmaps = [BitMasks.from_polygon_masks([polygons], *size).tensor for polygons in masks.polygons]
        return torch.cat(bitmaps) if bitmaps else torch.zeros((0, *size), dtype=torch.bool)
    if isinstance(masks, BitMasks):
        return masks.tensor.bool()
    return torch.as_tensor(np.asarray(masks) if isinstance(masks, list) else masks).bool()


def pad_labels(labels: Sequence[Tensor], size: Sequence[int], ignore_index: int) -> Tensor:
    """Pads labels as the images are, to the right and below.

    Args:
        labels: class ids ``(H_i, W_i)`` by image.
        size: height and width of the padded images.
        ignore_index: label of the padding.

    Returns:
        Class ids ``(N, H, W)``.

    Raises:
        UserError: labels are larger than the images.
    """
    padded = []
    for label in labels:
        below, right = size[0] - label.shape[-2], size[1] - label.shape[-1]
        if below < 0 or right < 0:
            raise UserError(
                f"labels of the size {tuple(label.shape)} belong to images that the backbone reads at the "
                f"size {tuple(size)}; expected the images' size before their padding"
            )
        padded.append(F.pad(label, (0, right, 0, below), value=ignore_index))
    return torch.stack(padded)
