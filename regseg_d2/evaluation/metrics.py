"""Metrics of semantic segmentation, computed from a confusion matrix of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from detectron2.utils.registry import Registry
from torch import Tensor

METRIC = Registry("METRIC")
METRIC.__doc__ = """
Metrics besides those of the confusion matrix, for ``TEST.METRICS``: an :class:`ImageMetric` each, built with
the number of classes and the value of labels that is ignored.
"""


class ImageMetric(Protocol):
    """Scores of what can be counted image by image.

    Attributes:
        size: how many counts there are.
    """

    size: int

    def count(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Counts (size,) in int64 of one image, from predicted and true classes (H, W)."""

    def scores(self, counts: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
        """Scores in percent by name, from the sum (size,) of the counts of all images."""


@dataclass(frozen=True)
class SegmentationMetrics:
    """Scores in percent; NaN where a score is not defined.

    Attributes:
        miou: mean IoU over the classes that are in the ground truth (Detectron2's convention).
        miou_predicted: mean IoU over the classes that are in the ground truth or were predicted; a
            class that is only predicted counts as 0 (mmsegmentation's convention).
        fwiou: IoU weighted with the classes' share of the pixels.
        macc: mean over the classes in the ground truth of the share of their pixels that is right.
        pacc: share of all pixels that is right.
        iou: IoU of each class (K,), NaN for classes that are not in the ground truth.
        acc: share of each class's pixels that is right (K,), NaN as above.
        pixels: number of pixels of each class in the ground truth (K,).
        predicted_pixels: number of valid pixels that were given to each class (K,).
    """

    miou: float
    miou_predicted: float
    fwiou: float
    macc: float
    pacc: float
    iou: np.ndarray
    acc: np.ndarray
    pixels: np.ndarray
    predicted_pixels: np.ndarray

    def as_detectron2(self, class_names: list[str]) -> dict[str, float]:
        """Returns the dict that Detectron2's evaluator returns, and ``mIoU_predicted``."""
        scores = self.means()
        scores |= {f"IoU-{name}": float(v) for name, v in zip(class_names, self.iou, strict=True)}
        scores |= {f"ACC-{name}": float(v) for name, v in zip(class_names, self.acc, strict=True)}
        return scores

    def means(self) -> dict[str, float]:
        """The scores over all classes, by the names that Detectron2 gives them."""
        names = ("mIoU", "mIoU_predicted", "fwIoU", "mACC", "pACC")
        values = (self.miou, self.miou_predicted, self.fwiou, self.macc, self.pacc)
        return dict(zip(names, values, strict=True))


def compute_metrics(confusion: np.ndarray) -> SegmentationMetrics:
    """Computes all metrics of a confusion matrix.

    Args:
        confusion: (K, K) pixel counts, ``confusion[predicted, true]``, void pixels left out.
    """
    right = confusion.diagonal().astype(float)
    pixels = confusion.sum(axis=0).astype(float)
    predicted = confusion.sum(axis=1).astype(float)
    union = pixels + predicted - right

    present = pixels > 0
    iou = _ratio(right, union, where=present)
    acc = _ratio(right, pixels, where=present)
    share = _ratio(pixels, np.full_like(pixels, pixels.sum()), where=present)
    return SegmentationMetrics(
        miou=100 * _mean(iou[present]),
        # Present: union > 0 as well. Absent but predicted: right is 0, and so is the IoU.
        miou_predicted=100 * _mean(_ratio(right, union, where=union > 0)[union > 0]),
        fwiou=100 * _total(iou[present] * share[present]),
        macc=100 * _mean(acc[present]),
        pacc=100 * (float(right.sum() / pixels.sum()) if pixels.sum() else math.nan),
        iou=100 * iou,
        acc=100 * acc,
        pixels=confusion.sum(axis=0),
        predicted_pixels=confusion.sum(axis=1),
    )


def find_oddities(metrics: SegmentationMetrics, class_names: list[str]) -> list[str]:
    """Returns one sentence for each thing that makes the scores mean less than they seem to."""
    present, predicted = metrics.pixels > 0, metrics.predicted_pixels > 0
    names = np.asarray(class_names, dtype=object)
    if not present.any():
        return ["No pixel has a label: every score is undefined."]
    found = []
    if not present.all():
        found.append(
            f"Not in the ground truth, and left out of mIoU: {', '.join(names[~present])}. "
            "mIoU_predicted counts those that were predicted as 0."
        )
    if (present & ~predicted).any():
        found.append(f"In the ground truth and never predicted: {', '.join(names[present & ~predicted])}.")
    if present.sum() == 1:
        found.append(
            f"Only one class is in the ground truth ({names[present][0]}): mIoU does not say how well "
            "classes are told apart. Check the labels and the label_map."
        )
    if predicted.sum() == 1:
        found.append(
            f"The prediction is constant: every pixel is {names[predicted][0]}. The model has not learned, "
            "or its weights were not loaded."
        )
    return found


def json_number(value: float) -> float | None:
    """The number, or None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, where: np.ndarray) -> np.ndarray:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=where)
    return ratio


def _mean(values: np.ndarray) -> float:
    return float(values.sum() / values.size) if values.size else math.nan


def _total(values: np.ndarray) -> float:
    return float(values.sum()) if values.size else math.nan
