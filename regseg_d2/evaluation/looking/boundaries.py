"""Boundary IoU of all classes at once.

Source: Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation", CVPR 2021: the IoU of those pixels of two masks that are near their contours.
"""

from __future__ import annotations

import cv2
import numpy as np

#: Width of the boundary over the image's diagonal (section 4: 2 %).
BOUNDARY_RATIO = 0.02


class BoundaryCounts:
    """Adds up the intersections and unions of boundaries of each class.

    A void pixel is in no mask, neither of the label nor of the prediction.

    Args:
        num_classes: K.
        ratio: width of the boundary over the image's diagonal.
    """

    def __init__(self, num_classes: int, ratio: float = BOUNDARY_RATIO) -> None:
        self.ratio = ratio
        self.intersections = np.zeros(num_classes, dtype=np.int64)
        self.unions = np.zeros(num_classes, dtype=np.int64)

    def add(self, label: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image.

        Args:
            label: ``(H, W)`` classes, void is -1.
            predicted: ``(H, W)`` classes.
        """
        width = max(1, round(self.ratio * float(np.hypot(*label.shape))))
        predicted = np.where(label < 0, -1, predicted)
        of_label, of_prediction = (near_contour(classes, width) for classes in (label, predicted))
        both = of_label & of_prediction & (label == predicted)
        intersections = self._per_class(label[both])
        self.intersections += intersections
        self.unions += self._per_class(label[of_label]) + self._per_class(predicted[of_prediction])
        self.unions -= intersections

    def _per_class(self, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=len(self.unions))


def near_contour(classes: np.ndarray, width: int) -> np.ndarray:
    """Finds the pixels that are near the contour of their own class's mask.

    These are the pixels that ``width`` erosions of the mask by 3 x 3 pixels take away, the outside of the
    image being in no mask. A pixel goes if a square around it holds another class or ends outside: if the
    smallest and the largest class in it differ. So that one pass finds the boundaries of all classes.

    Args:
        classes: ``(H, W)`` integers from -1 on; -1 is in no mask.
        width: in pixels.

    Returns:
        ``(H, W)`` bool.
    """
    values = (classes + 1).astype(np.uint8 if classes.max() < 255 else np.uint16)
    square = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    near = cv2.erode(values, square) != cv2.dilate(values, square)
    for side in (near, near.T):
        side[:width] = side[-width:] = True
    return near & (classes >= 0)
