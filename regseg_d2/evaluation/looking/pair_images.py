"""The images in which one class is most taken for another."""

from __future__ import annotations

import numpy as np


class PairImages:
    """Keeps, for each pair of classes, the images with the most pixels of one that were taken for the other.

    Of a class and itself: the images with most of its pixels right. Of images with as many pixels the first
    ones are kept.

    Attributes:
        images: ``(K, K, most)`` int32, [true, predicted]: numbers of the images, most pixels first, or -1.
        counts: ``(K, K, most)`` int64, pixels of the pair in each of them.
    """

    def __init__(self, num_classes: int, most: int) -> None:
        self.images = np.full((num_classes, num_classes, most), -1, dtype=np.int32)
        self.counts = np.zeros((num_classes, num_classes, most), dtype=np.int64)

    def add(self, confusion: np.ndarray, image: int) -> None:
        """Adds an image.

        Args:
            confusion: ``(K, K)`` counts of its pixels, [true, predicted].
            image: its number.
        """
        pair = np.nonzero(confusion > self.counts[..., -1])
        counts = np.concatenate([self.counts[pair], confusion[pair][:, None]], axis=1)
        images = np.pad(self.images[pair], ((0, 0), (0, 1)), constant_values=image)
        order = np.argsort(-counts, axis=1, kind="stable")[:, :-1]
        self.counts[pair] = np.take_along_axis(counts, order, axis=1)
        self.images[pair] = np.take_along_axis(images, order, axis=1)
