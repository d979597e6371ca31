"""Scaling images and labels, and of a scaled image only the part that a crop shows."""

from __future__ import annotations

import cv2
import numpy as np

Window = tuple[slice, slice]

# A pixel of warpAffine, which can begin anywhere, takes as long as so many of resize, which cannot.
_WARP_COST = 4


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size after scaling, each side rounded and at least 1."""
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image ``(H, W, 3)`` of uint8: bilinear, or by area where a side shrinks to less than half.

    Down to one half bilinear interpolation leaves no pixel out; below, it would (aliasing).
    """
    if image.shape[:2] == tuple(size):
        return image
    method = cv2.INTER_AREA if _leaves_pixels_out(image, size) else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def resize_crop(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Resizes what a crop of the resized image shows.

    Args:
        image: array ``(H, W, 3)`` of uint8.
        size: height and width of the whole image after resizing.
        window: rows and columns of the crop, within ``size``.

    Returns:
        ``resize_image(image, size)[window]``, to one grey level: OpenCV's ``resize`` cannot begin
        between two pixels, and ``warpAffine``, which can, rounds at other places.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image[window]
    if _leaves_pixels_out(image, size):
        # The result is small, whatever part of it is wanted.
        return resize_image(image, size)[window]
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


def _leaves_pixels_out(image: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether bilinear interpolation to a size would read only some of the pixels."""
    return 2 * size[0] < image.shape[0] or 2 * size[1] < image.shape[1]


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Source indices ``(new,)`` of a side of length ``old`` that is resized by nearest neighbour.

    Pixel centres are at half positions, as in :func:`resize_image`, so that labels stay under their
    pixels. (OpenCV's ``INTER_NEAREST`` counts from pixel corners, which moves labels by up to half a
    pixel of the coarser grid.)
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
