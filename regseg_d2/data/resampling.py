"""Scaling images and labels, and of a scaled image only the part that a crop shows."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import csr_array

Window = tuple[slice, slice]

# A pixel of warpAffine, which can begin anywhere, takes as long as so many of resize, which cannot.
_WARP_COST = 4
# Pixels that are averaged at a time where an image shrinks.
_AREA_PIXELS = 1 << 17


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


def resize_crop(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Resizes what a crop of the resized image shows.

    Args:
        image: array ``(H, W, 3)`` of uint8.
        size: height and width of the whole image after resizing; both grow, or none does.
        window: rows and columns of the crop, within ``size``.

    Returns:
        ``resize_image(image, size)[window]``, to one grey level: OpenCV's ``resize`` cannot begin
        between two pixels, and the functions that can round at other places.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image[window]
    if size[0] <= height and size[1] <= width:
        return _area_crop(image, size, window)
    return _bilinear_crop(image, size, window)


def _bilinear_crop(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = window
    shape = rows.stop - rows.start, columns.stop - columns.start
    if rows.stop * columns.stop <= _WARP_COST * shape[0] * shape[1]:
        # All from the top left corner on, which needs no offset; the last pixel reads one beyond.
        bottom = min(-(-rows.stop * height // size[0]) + 1, height)
        right = min(-(-columns.stop * width // size[1]) + 1, width)
        return cv2.resize(image[:bottom, :right], None, fx=size[1] / width, fy=size[0] / height)[window]
    step_y, step_x = height / size[0], width / size[1]
    # Pixel centres are at half positions; beyond the outermost ones the image is constant.
    matrix = np.array(
        [
            [step_x, 0, (columns.start + 0.5) * step_x - 0.5],
            [0, step_y, (rows.start + 0.5) * step_y - 0.5],
        ]
    )
    return cv2.warpAffine(
        image,
        matrix,
        (shape[1], shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _area_crop(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Means over the area of each new pixel: along the height first, then along the width."""
    (rows, row_means), (columns, column_means) = (
        _area_means(old, new, part) for old, new, part in zip(image.shape, size, window, strict=False)
    )
    part = _weighted_rows(row_means, image[rows, columns])
    return cv2.transpose(_weighted_rows(column_means, cv2.transpose(part)))


def _weighted_rows(weights: csr_array, image: np.ndarray) -> np.ndarray:
    """Sums of rows: ``weights (M, H) x image (H, W, 3)``, rounded to uint8."""
    height, width, channels = image.shape
    result = np.empty((weights.shape[0], width, channels), dtype=np.uint8)
    # Stretch by stretch, so that the float values never leave the processor's cache.
    columns = max(_AREA_PIXELS // height, 1)
    for left in range(0, width, columns):
        part = image[:, left : left + columns]
        sums = weights @ part.astype(np.float32).reshape(height, -1)
        result[:, left : left + columns] = cv2.convertScaleAbs(sums).reshape(-1, *part.shape[1:])
    return result


def _area_means(old: int, new: int, part: slice) -> tuple[slice, csr_array]:
    """Weights that turn old pixels of one side into the new ones of a part.

    Args:
        old: length of the side before.
        new: length after, at most ``old``.
        part: the new pixels to make.

    Returns:
        The old pixels that are read, and a matrix (new pixels, old pixels) whose rows add up to 1: new pixel
        i is the mean over [i, i + 1) * old / new, old pixels cut at the ends included by their share.
    """
    step = old / new
    edges = np.arange(part.start, part.stop + 1) * step
    starts, ends = edges[:-1, None], edges[1:, None]
    taps = np.arange(int(np.ceil(step)) + 1, dtype=np.int32)
    pixels = np.floor(starts).astype(np.int32) + taps
    shares = (np.minimum(pixels + 1, ends) - np.maximum(pixels, starts)) / step
    # Where rounding lets a cell touch the next pixel, its share is as good as none.
    is_inside = (shares > 1e-6) & (pixels < old)
    columns = pixels[is_inside]
    first, last = int(columns[0]), int(columns[-1])
    bounds = np.zeros(len(pixels) + 1, dtype=np.int32)
    np.cumsum(is_inside.sum(axis=1), out=bounds[1:])
    matrix = csr_array(
        (shares[is_inside].astype(np.float32), columns - first, bounds),
        shape=(len(pixels), last + 1 - first),
    )
    return slice(first, last + 1), matrix


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


def take_nearest(label: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Picks ``label[rows x columns]``; both ascend, as those of :func:`nearest_indices` do."""
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = label[top:bottom, left:right]
    # Whole rows are cheaper to pick than single pixels: first fewer rows, or then copies of rows.
    if len(rows) < bottom - top:
        return part[rows - top].take(columns - left, axis=1)
    return part.take(columns - left, axis=1)[rows - top]


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label array ``(H, W)`` to ``size`` by nearest neighbour."""
    return take_nearest(
        label, nearest_indices(label.shape[0], size[0]), nearest_indices(label.shape[1], size[1])
    )
