"""Augmentations as plain functions of arrays; what is random is drawn from a generator handed in."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from regseg_d2.errors import ConfigError

# Weights of red, green and blue in luminance (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size after scaling, each side rounded and at least 1."""
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image: bilinear where it grows, by area (no aliasing) where it shrinks.

    Args:
        image: array ``(H, W, 3)`` of uint8.
        size: new height and width.

    Returns:
        Array ``(*size, 3)`` of uint8.
    """
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Source index of each position of a side resized by nearest neighbour.

    Pixel centres are at half positions, as in :func:`resize_image`, so that labels stay under their
    pixels. (OpenCV's ``INTER_NEAREST`` counts from pixel corners, which moves labels by up to half a
    pixel of the coarser grid.)

    Args:
        old: length of the side before.
        new: length of the side after.

    Returns:
        Array ``(new,)`` of indices below ``old``.
    """
    # floor((i + 1/2) * old / new) in whole numbers, hence exact.
    return (2 * np.arange(new) + 1) * old // (2 * new)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label array ``(H, W)`` to ``size`` by nearest neighbour."""
    rows = nearest_indices(label.shape[0], size[0])
    columns = nearest_indices(label.shape[1], size[1])
    return label[rows[:, None], columns]


@dataclass(frozen=True)
class RandomScale:
    """Draws a scale factor.

    Args:
        smallest: smallest factor.
        largest: largest factor.
        step: distance between the possible factors; 0 is any factor between.

    Raises:
        ConfigError: the range is empty or not positive, or the step negative.
    """

    smallest: float
    largest: float
    step: float = 0.0

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 < self.smallest <= self.largest:
            raise ConfigError(
                f"INPUT.SCALE_RANGE is [{self.smallest}, {self.largest}]; expected two positive factors, "
                "the smaller one first."
            )
        if self.step < 0:
            raise ConfigError(f"INPUT.SCALE_STEP is {self.step}; expected 0 or more.")

    def draw(self, rng: np.random.Generator) -> float:
        """Returns a factor, drawn uniformly."""
        if self.step == 0:
            return float(rng.uniform(self.smallest, self.largest))
        # The small term keeps the last factor where rounding puts it just out of reach.
        steps = int((self.largest - self.smallest) / self.step + 1e-6)
        return self.smallest + self.step * int(rng.integers(steps + 1))


@dataclass(frozen=True)
class RandomCrop:
    """Draws the corner of a crop in which no class takes too large a share.

    The idea is that of Detectron2's DeepLab project (``RandomCrop_CategoryAreaConstraint``); here a
    crop without any valid pixel is drawn again too.

    Args:
        size: height and width of the crop.
        max_share: largest share of the valid pixels that one class may have; 1 takes the first crop.
        ignore_value: label of pixels that are not valid.
        tries: number of crops drawn at most; the last one is taken as it is.

    Raises:
        ConfigError: a number is out of its range.
    """

    size: tuple[int, int]
    max_share: float
    ignore_value: int = 255
    tries: int = 10

    def __post_init__(self) -> None:
        """Checks size and share."""
        if len(self.size) != 2 or min(self.size) < 1 or any(side != int(side) for side in self.size):
            raise ConfigError(
                f"INPUT.CROP.SIZE is {list(self.size)}; expected a height and a width in pixels."
            )
        if not 0 < self.max_share <= 1:
            raise ConfigError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {self.max_share}; expected a share above 0, at most "
                "1."
            )

    def draw(
        self, rng: np.random.Generator, label: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[slice, slice]:
        """Draws a crop of the label as it is after resizing.

        Args:
            rng: source of the corner.
            label: array ``(H, W)`` before resizing.
            rows: source row of each row after resizing (:func:`nearest_indices`).
            columns: source column of each column after resizing.

        Returns:
            Rows and columns of the crop, in the resized image; fewer than ``size`` where it is smaller.
        """
        height, width = int(self.size[0]), int(self.size[1])
        for _ in range(self.tries):
            top = int(rng.integers(max(len(rows) - height, 0) + 1))
            left = int(rng.integers(max(len(columns) - width, 0) + 1))
            window = slice(top, min(top + height, len(rows))), slice(left, min(left + width, len(columns)))
            if self.max_share >= 1 or self._is_mixed(label[rows[window[0], None], columns[window[1]]]):
                break
        return window

    def _is_mixed(self, crop: np.ndarray) -> bool:
        counts = np.bincount(crop[crop != self.ignore_value])
        return counts.size > 0 and counts.max() <= self.max_share * counts.sum()


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue by random amounts, in this order.

    Args:
        brightness: largest relative change of all values.
        contrast: largest relative change of the distance from the mean luminance.
        saturation: largest relative change of the distance from each pixel's own luminance.
        hue: largest shift of the hue, as a share of the circle, at most 0.5.

    Raises:
        ConfigError: an amount is out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        """Checks the amounts."""
        for key in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(
                    f"INPUT.COLOR_JITTER.{key.upper()} is {getattr(self, key)}; expected 0 to 1."
                )
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"INPUT.COLOR_JITTER.HUE is {self.hue}; expected 0 to 0.5.")

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a changed copy of an RGB image ``(H, W, 3)`` of uint8; the image itself if all are 0."""
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return image
        brightness, contrast, saturation = (
            float(rng.uniform(1 - amount, 1 + amount))
            for amount in (self.brightness, self.contrast, self.saturation)
        )
        shift = float(rng.uniform(-self.hue, self.hue))
        return adjust_colors(image, brightness, contrast, saturation, shift)


def adjust_colors(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Scales brightness, contrast and saturation by factors and turns the hue.

    Args:
        image: RGB array ``(H, W, 3)`` of uint8.
        brightness: factor of all values.
        contrast: factor of the distance from the mean luminance.
        saturation: factor of the distance from each pixel's luminance.
        hue: shift as a share of the circle.

    Returns:
        Array ``(H, W, 3)`` of uint8; values are clipped once, at the end (and before the hue).
    """
    # float32 without BLAS: a matrix product may sum in another order on another number of threads.
    values = image.astype(np.float32) * np.float32(brightness)
    if contrast != 1:
        mean = np.float32((values * _LUMINANCE).sum(axis=2).mean(dtype=np.float64))
        values = mean + (values - mean) * np.float32(contrast)
    if saturation != 1:
        luminance = (values * _LUMINANCE).sum(axis=2, keepdims=True)
        values = luminance + (values - luminance) * np.float32(saturation)
    if hue != 0:
        hsv = cv2.cvtColor(values.clip(0, 255), cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(360 * hue)) % np.float32(360)
        values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return (values + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def pad_to(array: np.ndarray, size: tuple[int, int], value: int | np.ndarray) -> np.ndarray:
    """Pads an array ``(H, W, ...)`` at the bottom and the right to ``size`` with ``value``."""
    if array.shape[:2] == tuple(size):
        return array
    padded = np.empty((*size, *array.shape[2:]), dtype=array.dtype)
    padded[:] = value
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
