"""Images beside their labels and predictions, with captions, titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from regseg_d2.common.errors import printable
from regseg_d2.drawing.overlay import blend, draw_legend, fitting_text, legend_of, text_font

# Pixels: height of the titles and of a caption, and between pictures.
TITLE, CAPTION, GAP = 24, 20, 4
# Width of a picture: small ones are enlarged by a whole number, large ones shrink.
_MIN_WIDTH, _MAX_WIDTH = 256, 512
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class SheetRow:
    """An image and what is said of its pixels.

    Attributes:
        caption: stands above it.
        image: ``(H', W', 3)`` uint8, RGB.
        labels: maps of class ids ``(H, W)``, all of one size; what is no class is void.
    """

    caption: str
    image: np.ndarray
    labels: Sequence[np.ndarray]


def prediction_sheet(
    rows: Sequence[SheetRow], titles: Sequence[str], names: Sequence[str], colors: np.ndarray
) -> np.ndarray:
    """Draws rows of pictures below their titles, and below them the classes that occur.

    Each picture is as wide as the widest label, but from 256 to 512 pixels, and at most twice as high.
    Pixels without a class are hatched. Of a text that is too long the end is shown.

    Args:
        rows: at least one.
        titles: of the image and of each of the labels.
        names: K class names.
        colors: ``(K, 3)`` uint8, RGB.

    Returns:
        ``(H, W, 3)`` uint8, RGB.
    """
    width = _shown_width(max(row.labels[0].shape[1] for row in rows))
    lefts = [number * (width + GAP) for number in range(len(titles))]
    strips = [_pictures(row, width, colors) for row in rows]
    tops = np.cumsum([TITLE, *(CAPTION + strip[0].shape[0] + GAP for strip in strips)]).tolist()
    sheet = Image.new("RGB", (lefts[-1] + width, tops[-1]), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for title, left in zip(titles, lefts, strict=True):
        _write(draw, title, (left, 0), (width, TITLE), 14)
    for row, strip, top in zip(rows, strips, tops, strict=False):
        _write(draw, row.caption, (0, top), (sheet.width, CAPTION), 12)
        for picture, left in zip(strip, lefts, strict=True):
            sheet.paste(Image.fromarray(picture), (left, top + CAPTION))
    everything = np.concatenate([label.ravel() for row in rows for label in row.labels])[None]
    entries = [replace(entry, note="") for entry in legend_of(everything, names, colors)]
    return np.concatenate([np.asarray(sheet), draw_legend(entries, sheet.width)])


def _shown_width(width: int) -> int:
    return min(width * max(1, -(-_MIN_WIDTH // width)), _MAX_WIDTH)


def _pictures(row: SheetRow, width: int, colors: np.ndarray) -> list[np.ndarray]:
    """Image and labels at the size that they are shown at."""
    height = row.labels[0].shape[0] * width / row.labels[0].shape[1]
    scale = min(1.0, 2 * width / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = np.ascontiguousarray(row.image, dtype=np.uint8)
    shrinks = image.shape[1] > size[0]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    shown = [_nearest(np.asarray(label), size) for label in row.labels]
    return [image, *(blend(image, label, colors, opacity=1.0) for label in shown)]


def _nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of class ids of any type at another width and height."""
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(np.int64)
        for shown, side in zip(size[::-1], label.shape, strict=True)
    )
    return label[rows[:, None], columns]


def _write(
    draw: ImageDraw.ImageDraw, text: str, place: tuple[int, int], size: tuple[int, int], points: int
) -> None:
    font = text_font(points)
    text = fitting_text(printable(text, None), font, size[0] - 4, shows_end=True)
    draw.text((place[0] + 2, place[1] + size[1] / 2), text, fill=_INK, font=font, anchor="lm")
