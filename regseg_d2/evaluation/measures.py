"""Measures of a trained network beside its mIoU: how compact its classes are, how well it knows when it errs.

Every class here adds up image after image in constant memory, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ClassCenters:
    """Centers and spread of the classes in feature space.

    Args:
        num_classes: K.
        channels: C.
        device: where features are.
    """

    def __init__(self, num_classes: int, channels: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, feature: Tensor, label: Tensor) -> None:
        """Adds the pixels of one image.

        Args:
            feature: ``(C, h, w)``.
            label: ``(h, w)``; a label outside 0 to K - 1 is void.
        """
        self.add_pixels(*valid_pixels(feature, label, self.num_classes))

    def add_pixels(self, x: Tensor, y: Tensor) -> None:
        """Adds features ``(P, C)`` in float64, and their classes ``(P,)``."""
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=torch.float64))
        self.sums.index_add_(0, y, x)
        self.squares.index_add_(0, y, (x * x).sum(dim=1))

    @property
    def present(self) -> Tensor:
        """Classes with a pixel, ``(K,)`` bool."""
        return self.counts > 0

    @property
    def centers(self) -> Tensor:
        """Mean feature of each class, ``(K, C)``; zero for a class without a pixel."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(1)

    def distances(self) -> dict[str, float]:
        """How far pixels are from their class's center, and centers from each other.

        Returns:
            ``intra_class_distance``: root mean square distance of a class's pixels to its center, mean over
            classes. ``inter_class_distance``: distance between two centers, mean over pairs.
            ``intra_inter_ratio``: the first over the second, which no scale of the features changes.
            NaN where fewer than two classes are present.
        """
        present = self.present
        centers, counts = self.centers[present], self.counts[present]
        variance = (self.squares[present] / counts - (centers**2).sum(dim=1)).clamp(min=0)
        intra = variance.sqrt().mean().item() if len(counts) else math.nan
        inter = torch.pdist(centers).mean().item() if len(counts) > 1 else math.nan
        return {
            "intra_class_distance": intra,
            "inter_class_distance": inter,
            "intra_inter_ratio": intra / inter if inter else math.nan,
        }


class NearestCenter:
    """Share of pixels whose nearest class center is that of their own class.

    Args:
        centers: ``(K, C)`` float64, of the training set.
        present: ``(K,)`` bool, classes that have a center.
    """

    def __init__(self, centers: Tensor, present: Tensor) -> None:
        self.centers = centers
        self.present = present
        self.right = 0
        self.pixels = 0

    def add(self, feature: Tensor, label: Tensor) -> None:
        """Adds the pixels of one image; arguments as of :meth:`ClassCenters.add`."""
        x, y = valid_pixels(feature, label, len(self.centers))
        # |x - mu|^2 without |x|^2, which is the same for all centers.
        scores = (self.centers**2).sum(dim=1) - 2 * x @ self.centers.T
        nearest = scores.masked_fill(~self.present, math.inf).argmin(dim=1)
        self.right += int((nearest == y).sum())
        self.pixels += len(y)

    def accuracy(self) -> float:
        """Percent of all valid pixels; NaN without one."""
        return 100 * self.right / self.pixels if self.pixels else math.nan


class Calibration:
    """Expected calibration error of the pixels' largest probability (Guo et al., ICML 2017).

    Args:
        num_bins: bins of equal width between 0 and 1.
    """

    def __init__(self, num_bins: int = 15) -> None:
        self.pixels = np.zeros(num_bins)
        self.confidence = np.zeros(num_bins)
        self.right = np.zeros(num_bins)

    def add(self, probabilities: Tensor, label: Tensor) -> None:
        """Adds one image.

        Args:
            probabilities: ``(K, H, W)``, summing to 1 over classes.
            label: ``(H, W)``; a label outside 0 to K - 1 is void.
        """
        confidence, predicted = probabilities.max(dim=0)
        valid = (label >= 0) & (label < len(probabilities))
        right = (predicted == label)[valid]
        self.add_pixels(confidence[valid].double().cpu().numpy(), right.cpu().numpy())

    def add_pixels(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Adds valid pixels: their largest probability ``(P,)``, and whether its class is the label's."""
        bins = np.minimum((confidence * len(self.pixels)).astype(int), len(self.pixels) - 1)
        for total, weights in ((self.pixels, None), (self.confidence, confidence), (self.right, right)):
            total += np.bincount(bins, weights, minlength=len(self.pixels))

    def error(self) -> float:
        """Mean over pixels of |accuracy - confidence| of their bin, in percent; NaN without a pixel."""
        return calibration_error(self.pixels, self.confidence, self.right)


def calibration_error(pixels: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in percent, from the sums over each bin's pixels; NaN without a pixel."""
    if not pixels.any():
        return math.nan
    return 100 * float(np.abs(right - confidence).sum() / pixels.sum())


def valid_pixels(feature: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Features ``(P, C)`` in float64 and labels ``(P,)`` of the pixels that are not void."""
    valid = (label >= 0) & (label < num_classes)
    return feature.permute(1, 2, 0)[valid].double(), label[valid].long()


def tail_classes(pixels: Sequence[float]) -> list[int]:
    """The third of the classes (rounded up) with the fewest pixels, among those that have any."""
    present = sorted((count, number) for number, count in enumerate(pixels) if count > 0)
    return sorted(number for _, number in present[: math.ceil(len(present) / 3)])


def mean_over(values: Sequence[float], classes: Sequence[int]) -> float:
    """Mean of some classes' values, those that are NaN left out; NaN if none is left."""
    chosen = [values[number] for number in classes if not math.isnan(values[number])]
    return sum(chosen) / len(chosen) if chosen else math.nan
