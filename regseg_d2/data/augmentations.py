"""Augmentations for ``INPUT.AUGMENTATIONS`` beside Detectron2's; like those, they draw from ``np.random``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import transforms as T  # noqa: N812 (the name that Detectron2 itself uses)
from fvcore.common.registry import Registry

#: Augmentations by name: those below, and those of users. They come before Detectron2's of the same name.
AUGMENTATION = Registry("AUGMENTATION")


class PixelTransform(T.Transform):
    """A transform that changes colours and moves nothing."""

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Returns the coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Returns the labels as they are."""
        return segmentation


@dataclass
class BlurTransform(PixelTransform):
    """Convolution with a Gaussian of standard deviation ``sigma``, in pixels."""

    sigma: float

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Blurs an image ``(H, W, 3)``; its border is mirrored."""
        return cv2.GaussianBlur(img, (0, 0), self.sigma)


@dataclass
class NoiseTransform(PixelTransform):
    """Adds ``noise`` ``(H, W, 3)``."""

    noise: np.ndarray

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Adds the noise to an image of uint8; rounds and clips."""
        return cv2.add(img, self.noise, dtype=cv2.CV_8U)


@dataclass
class PasteTransform(T.Transform):
    """Copies the pixels of a mask to another place, of images and labels alike.

    ``mask`` is ``(h, w)``, of an object in the box at ``source``; it goes into the box at ``target``. Both
    are the row and column of the box's first pixel.
    """

    mask: np.ndarray
    source: tuple[int, int]
    target: tuple[int, int]

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Returns a changed copy of an array ``(H, W, ...)``."""
        result = img.copy()
        result[self._box(self.target)][self.mask] = img[self._box(self.source)][self.mask]
        return result

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Refuses: a point of an object is at two places afterwards."""
        raise NotImplementedError("a pasted object has its points twice")

    def _box(self, corner: tuple[int, int]) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)


def _checked_range(name: str, values: Sequence[float], lowest: float) -> tuple[float, float]:
    low, high = values
    if not lowest <= low <= high:
        raise ValueError(f"{name} is {list(values)}; expected [smallest, largest], {lowest} or more")
    return low, high


def _checked_probability(prob: float) -> float:
    if not 0 <= prob <= 1:
        raise ValueError(f"prob is {prob}; expected 0 to 1")
    return prob


@AUGMENTATION.register()
class GaussianBlur(T.Augmentation):
    """Blurs the image.

    Args:
        sigma: smallest and largest standard deviation of the Gaussian, in pixels.
        prob: how often.
    """

    def __init__(self, sigma: Sequence[float] = (0.1, 2.0), prob: float = 0.5) -> None:
        self.sigma = _checked_range("sigma", sigma, 0.01)
        self.prob = _checked_probability(prob)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the transform of an image ``(H, W, 3)``."""
        happens, sigma = np.random.random() < self.prob, np.random.uniform(*self.sigma)
        return BlurTransform(sigma) if happens else T.NoOpTransform()


@AUGMENTATION.register()
class GaussianNoise(T.Augmentation):
    """Adds independent noise to every value of the image.

    Args:
        std: smallest and largest standard deviation, in grey levels of 0 to 255.
        prob: how often.
    """

    def __init__(self, std: Sequence[float] = (0.0, 10.0), prob: float = 0.5) -> None:
        self.std = _checked_range("std", std, 0.0)
        self.prob = _checked_probability(prob)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the transform of an image ``(H, W, 3)``."""
        happens, std = np.random.random() < self.prob, np.random.uniform(*self.std)
        if not happens:
            return T.NoOpTransform()
        # A generator of its own, whose float32 numbers take a third of the time.
        generator = np.random.default_rng(np.random.randint(0, 2**32, size=4, dtype=np.uint32))
        return NoiseTransform(generator.standard_normal(image.shape, dtype=np.float32) * np.float32(std))


@AUGMENTATION.register()
class CutPaste(T.Augmentation):
    """Copies objects of the image to other places of the same image.

    An object is a connected region of one class; it may cover others, and comes where its box fits.

    Args:
        classes: indices of the classes whose objects are copied; those of things, not of ground or sky.
        count: smallest and largest number of copies.
        min_pixels: smaller regions are not copied.
        prob: how often.
    """

    def __init__(
        self,
        classes: Sequence[int],
        count: Sequence[int] = (1, 3),
        min_pixels: int = 64,
        prob: float = 0.5,
    ) -> None:
        if not classes:
            raise ValueError("classes is []; expected indices of classes")
        self.classes = list(classes)
        self.count = _checked_range("count", count, 1)
        self.min_pixels = min_pixels
        self.prob = _checked_probability(prob)

    def get_transform(self, sem_seg: np.ndarray) -> T.Transform:
        """Draws the transform of a label ``(H, W)``."""
        happens = np.random.random() < self.prob
        there = [index for index in self.classes if (sem_seg == index).any()] if happens else []
        copies = int(np.random.randint(self.count[0], self.count[1] + 1)) if there else 0
        pastes = [self._paste(sem_seg, int(np.random.choice(there))) for _ in range(copies)]
        return T.TransformList([paste for paste in pastes if paste is not None])

    def _paste(self, sem_seg: np.ndarray, index: int) -> T.Transform | None:
        number, regions, boxes, _ = cv2.connectedComponentsWithStats((sem_seg == index).astype(np.uint8))
        large = [i for i in range(1, number) if boxes[i, cv2.CC_STAT_AREA] >= self.min_pixels]
        if not large:
            return None
        region = int(np.random.choice(large))
        left, top, width, height = (int(value) for value in boxes[region, :4])
        mask = regions[top : top + height, left : left + width] == region
        target = (
            int(np.random.randint(sem_seg.shape[0] - height + 1)),
            int(np.random.randint(sem_seg.shape[1] - width + 1)),
        )
        return PasteTransform(mask, (top, left), target)


# get_transform has one argument, which Detectron2 would take for the image.
CutPaste.input_args = ("sem_seg",)
