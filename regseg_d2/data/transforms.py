"""Augmentations as plain functions of arrays; what is random is drawn from a generator handed in."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from regseg_d2.common.errors import check_key
from regseg_d2.data.resampling import Window, take_nearest

#: How a sample may be mirrored: left to right, top to bottom, or not.
FLIPS = ("horizontal", "vertical", "none")
# Codes of OpenCV.
_FLIP_CODES = {"horizontal": 1, "vertical": 0}
# Weights of red, green and blue in luminance (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# Up to so many pixels OpenCV's histograms, which are float32, count exactly.
_EXACT_COUNTS = 1 << 24
# Pixels whose hue is turned at a time.
_HUE_PIXELS = 1 << 16


@dataclass(frozen=True)
class RandomScale:
    """Draws a scale factor, in steps of ``step`` from the smallest on; 0 is any factor between.

    Raises:
        ConfigError: the range is empty or not positive, or the step negative.
    """

    smallest: float
    largest: float
    step: float = 0.0

    def __post_init__(self) -> None:
        scales, fine = [self.smallest, self.largest], 0 < self.smallest <= self.largest
        check_key("INPUT.SCALE_RANGE", scales, fine, "two positive factors, the smaller one first")
        check_key("INPUT.SCALE_STEP", self.step, self.step >= 0, "0 or more")

    def draw(self, rng: np.random.Generator) -> float:
        """Returns a factor, drawn uniformly."""
        if self.step == 0:
            return float(rng.uniform(self.smallest, self.largest))
        # The small term keeps the last factor where rounding puts it just out of reach.
        steps = int((self.largest - self.smallest) / self.step + 1e-6)
        return self.smallest + self.step * int(rng.integers(steps + 1))


@dataclass(frozen=True)
class WantedClass:
    """A class that a sample was drawn for, and how many pixels of it the crop should show."""

    index: int
    min_pixels: int


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
        sides, share = list(self.size), self.max_share
        fine = len(sides) == 2 and min(sides) >= 1 and all(side == int(side) for side in sides)
        check_key("INPUT.CROP.SIZE", sides, fine, "a height and a width in pixels")
        key = "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"
        check_key(key, share, 0 < share <= 1, "a share above 0, at most 1")

    def draw(
        self,
        rng: np.random.Generator,
        label: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        wanted: WantedClass | None = None,
    ) -> tuple[Window, np.ndarray]:
        """Draws a crop of the label as it is after resizing.

        Args:
            rng: source of the corner.
            label: array ``(H, W)`` before resizing.
            rows: source row of each row after resizing (``nearest_indices``).
            columns: source column of each column after resizing.
            wanted: a class that the crop should show; crops with too little of it are drawn again too.

        Returns:
            Rows and columns of the crop, in the resized image, fewer than ``size`` where that is smaller;
            and the label there.
        """
        height, width = int(self.size[0]), int(self.size[1])
        for _ in range(self.tries):
            top = int(rng.integers(max(len(rows) - height, 0) + 1))
            left = int(rng.integers(max(len(columns) - width, 0) + 1))
            window = slice(top, min(top + height, len(rows))), slice(left, min(left + width, len(columns)))
            crop = take_nearest(label, rows[window[0]], columns[window[1]])
            if self._is_suitable(crop, wanted):
                break
        return window, crop

    def _is_suitable(self, crop: np.ndarray, wanted: WantedClass | None) -> bool:
        if self.max_share >= 1 and wanted is None:
            return True
        counts = count_labels(crop, self.ignore_value)
        is_mixed = counts.any() and counts.max() <= self.max_share * counts.sum()
        if wanted is None or not (is_mixed or self.max_share >= 1):
            return bool(is_mixed)
        return wanted.index < len(counts) and counts[wanted.index] >= wanted.min_pixels


def count_labels(label: np.ndarray, ignore_value: int) -> np.ndarray:
    """Counts the pixels of each class in a label array; ``ignore_value`` is left out."""
    if label.dtype != np.uint8 or label.size > _EXACT_COUNTS:
        return np.bincount(label[label != ignore_value])
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    if 0 <= ignore_value < len(counts):
        counts[ignore_value] = 0
    return counts


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue by random amounts, in this order.

    Args:
        brightness: largest relative change of all values.
        contrast: largest relative change of the distance from the mean luminance.
        saturation: largest relative change of the distance from each pixel's own luminance.
        hue: largest shift of the hue, as a share of the circle, at most 0.5.
        probability: of each change, drawn one by one.

    Raises:
        ConfigError: an amount or the probability is out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for key in ("brightness", "contrast", "saturation", "probability"):
            value = getattr(self, key)
            check_key(f"INPUT.COLOR_JITTER.{key.upper()}", value, 0 <= value <= 1, "0 to 1")
        check_key("INPUT.COLOR_JITTER.HUE", self.hue, 0 <= self.hue <= 0.5, "0 to 0.5")

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a changed copy of an RGB image ``(H, W, 3)`` of uint8; the image itself if all are 0."""
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return image
        brightness, contrast, saturation = (
            float(rng.uniform(1 - amount, 1 + amount))
            for amount in (self.brightness, self.contrast, self.saturation)
        )
        shift = float(rng.uniform(-self.hue, self.hue))
        if self.probability < 1:
            happens = rng.random(4) < self.probability
            brightness, contrast, saturation = np.where(happens[:3], (brightness, contrast, saturation), 1.0)
            shift *= bool(happens[3])
        return adjust_colors(image, brightness, contrast, saturation, shift)


def adjust_colors(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Scales brightness, contrast and saturation by factors and turns the hue.

    The factors are those of the changes that :class:`ColorJitter` draws; the hue's shift is a share of the
    circle. The image is ``(H, W, 3)`` of uint8, RGB; values are rounded and clipped before the hue and at the
    end.
    """
    if (brightness, contrast, saturation) != (1, 1, 1):
        image = cv2.transform(image, _color_matrix(image, brightness, contrast, saturation))
    return image if hue == 0 else _turn_hue(image, hue)


def _color_matrix(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """The three changes as one matrix ``(3, 4)``: each is linear in a pixel's colour.

    With y the weights of luminance and m the mean luminance after the first change: v -> b v, then
    v -> c v + (1 - c) m, then v -> s v + (1 - s) (y . v). The weights add up to 1, so that the last change
    leaves the constant of the second one alone.
    """
    constant = 0.0
    if contrast != 1:
        constant = (1 - contrast) * brightness * float(_LUMINANCE @ np.array(cv2.mean(image)[:3]))
    matrix = saturation * np.eye(3) + (1 - saturation) * _LUMINANCE
    return np.column_stack([brightness * contrast * matrix, np.full(3, constant)])


def _turn_hue(image: np.ndarray, hue: float) -> np.ndarray:
    """Turns the hue, in float32: with 8 bits OpenCV's hue has steps of two degrees."""
    height, width = image.shape[:2]
    turned = np.empty_like(image, order="C")
    # Stretch by stretch, so that the float values never leave the processor's cache.
    rows = min(max(_HUE_PIXELS // width, 1), height)
    buffer = np.empty((rows, width, 3), dtype=np.float32)
    for top in range(0, height, rows):
        part = image[top : top + rows]
        values = buffer[: len(part)]
        values[:] = part
        cv2.cvtColor(values, cv2.COLOR_RGB2HSV, dst=values)
        # On the way back OpenCV takes more than 360 degrees, but not less than 0.
        cv2.add(values, (360 * (hue % 1), 0, 0, 0), dst=values)
        cv2.cvtColor(values, cv2.COLOR_HSV2RGB, dst=values)
        cv2.convertScaleAbs(values, dst=turned[top : top + rows])
    return turned


def to_planes(
    image: np.ndarray, size: tuple[int, int] | None, pad_value: np.ndarray, *, mirrored: str, bgr: bool
) -> np.ndarray:
    """Puts an image in the order of the network's input, with padding at the bottom and the right.

    Args:
        image: RGB array ``(h, w, 3)`` of uint8.
        size: height and width to pad to; None pads nothing.
        pad_value: pixel ``(3,)`` of the padding, in the order of the result.
        mirrored: how the padded image is mirrored, one of ``FLIPS``.
        bgr: blue first.

    Returns:
        Array ``(3, H, W)`` of uint8.
    """
    height, width = image.shape[:2]
    size = size or (height, width)
    planes = np.empty((3, *size), dtype=np.uint8)
    if (height, width) != tuple(size):
        planes[:] = pad_value[:, None, None]
    place = _place(height, width, size, mirrored)
    parts = [plane[place] for plane in planes]
    # OpenCV writes into the parts where they are.
    cv2.split(_flip(image, mirrored), mv=parts[::-1] if bgr else parts)
    return planes


def to_target(
    label: np.ndarray, size: tuple[int, int] | None, ignore_value: int, *, mirrored: str
) -> np.ndarray:
    """Pads and mirrors a label ``(h, w)`` as :func:`to_planes` does its image; ``(H, W)`` of int64.

    The label is of uint8 or int32; the padding is the ignore value.
    """
    height, width = label.shape
    size = size or (height, width)
    target = np.empty(size, dtype=np.int64)
    if (height, width) != tuple(size):
        target[:] = ignore_value
    target[_place(height, width, size, mirrored)] = _flip(label, mirrored)
    return target


def _flip(array: np.ndarray, mirrored: str) -> np.ndarray:
    return array if mirrored == "none" else cv2.flip(array, _FLIP_CODES[mirrored])


def _place(height: int, width: int, size: tuple[int, int], mirrored: str) -> Window:
    top = size[0] - height if mirrored == "vertical" else 0
    left = size[1] - width if mirrored == "horizontal" else 0
    return slice(top, top + height), slice(left, left + width)
