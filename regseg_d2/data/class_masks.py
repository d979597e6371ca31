"""The labels of an image as one mask a class, which networks that classify masks train on."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from regseg_d2.data.transforms import count_labels


def class_masks(labels: Tensor, ignore_value: int) -> Instances:
    """Splits labels into the masks of the classes that they show.

    Such a set of pairs of a class and its mask is the ground truth of semantic segmentation in MaskFormer
    (Cheng et al., NeurIPS 2021, section 3.2), and in Mask2Former.

    Args:
        labels: class ids ``(H, W)`` of int64, in main memory.
        ignore_value: label of pixels that are in no mask.

    Returns:
        Instances of the size ``(H, W)``: ``gt_classes``, the N classes with a pixel, ascending, int64
        ``(N,)``; ``gt_masks``, their pixels, bool ``(N, H, W)``. N is 0 where no pixel has a class.
    """
    pixels = labels.numpy()  # several times as fast at comparing as torch
    classes = np.flatnonzero(count_labels(pixels, ignore_value))
    return Instances(
        pixels.shape,
        gt_classes=torch.from_numpy(classes),
        gt_masks=torch.from_numpy(pixels == classes[:, None, None]),
    )
