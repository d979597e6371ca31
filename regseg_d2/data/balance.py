"""How often each class occurs, and the class weights that papers derive from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regseg_d2.common.files import write_text


@dataclass(frozen=True)
class ClassBalance:
    """Frequencies of K classes in N labels.

    Attributes:
        num_images: N.
        pixels: pixels of each class (K,).
        images_with_class: labels in which each class occurs (K,).
        pixels_of_images_with_class: valid pixels of those labels (K,).
        ignored_pixels: pixels that have no class.
    """

    num_images: int
    pixels: np.ndarray
    images_with_class: np.ndarray
    pixels_of_images_with_class: np.ndarray
    ignored_pixels: int

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that have no class; 0 without pixels."""
        total = self.ignored_pixels + int(self.pixels.sum())
        return self.ignored_pixels / total if total else 0.0

    @property
    def shares(self) -> np.ndarray:
        """Share of the valid pixels that each class has (K,)."""
        return self.pixels / max(int(self.pixels.sum()), 1)


def count_classes(per_image: np.ndarray, ignored_pixels: int) -> ClassBalance:
    """Sums up the pixels of each class in each label ``(N, K)``; ``ignored_pixels`` are of all labels."""
    present = per_image > 0
    valid = per_image.sum(axis=1)
    return ClassBalance(
        num_images=len(per_image),
        pixels=per_image.sum(axis=0),
        images_with_class=present.sum(axis=0),
        pixels_of_images_with_class=np.array([valid[column].sum() for column in present.T]),
        ignored_pixels=ignored_pixels,
    )


def enet_weights(balance: ClassBalance) -> np.ndarray:
    """Inverse logarithm of the frequency: ``1 / ln(1.02 + share)`` (K,), between 1.42 and 50.5.

    Paszke, Chaurasia, Kim, Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time Semantic
    Segmentation", 2016, section 5.2.
    """
    return 1 / np.log(1.02 + balance.shares)


def median_frequency_weights(balance: ClassBalance) -> np.ndarray:
    """Median frequency balancing (K,): the median of all frequencies over the class's own.

    A class's frequency is its share of the valid pixels of the images that hold it: Eigen, Fergus,
    "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
    Architecture", ICCV 2015, section 6.3.2. Classes that never occur are left out of the median and
    get 1.
    """
    seen = balance.pixels > 0
    weights = np.ones(len(balance.pixels))
    frequency = balance.pixels[seen] / balance.pixels_of_images_with_class[seen]
    if seen.any():
        weights[seen] = np.median(frequency) / frequency
    return weights


def write_frequencies(path: str | Path, dataset: str, balance: ClassBalance) -> None:
    """Writes the frequencies of a data set as JSON, for class weights in training."""
    content = {
        "dataset": dataset,
        "num_images": balance.num_images,
        "pixels": balance.pixels.tolist(),
        "images_with_class": balance.images_with_class.tolist(),
        "pixels_of_images_with_class": balance.pixels_of_images_with_class.tolist(),
        "ignored_pixels": int(balance.ignored_pixels),
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
