"""Classes painted over their image, with a legend that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regseg_d2.common.errors import UserError
from regseg_d2.common.files import atomic_writer
from regseg_d2.drawing.pictures import VOID_COLOR, color_label

# Width in pixels of a stripe over pixels without a class, and of the image between two stripes.
STRIPE = 4
# Legends are at least so wide, whatever the picture's width: names must be readable.
MIN_LEGEND_WIDTH = 240
_TEXT_COLOR = (20, 20, 20)
_PAPER = (255, 255, 255)
_VOID_NAME = "no class"


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend.

    Attributes:
        name: what the colour means.
        color: RGB; None is the hatching of pixels without a class.
        note: stands behind the name, such as a share.
    """

    name: str
    color: tuple[int, int, int] | None
    note: str = ""


def blend(image: np.ndarray, label: np.ndarray, colors: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Mixes an image with the colours of its classes.

    Pixels without a class are hatched: black diagonal stripes over the image, which is mixed with white so
    that they show on any image.

    Args:
        image: (H, W, 3) uint8, RGB.
        label: (H, W) class ids; others are void.
        colors: (K, 3) uint8, RGB.
        opacity: share of the class colour, 0 to 1.

    Returns:
        (H, W, 3) uint8, RGB: ``round((1 - opacity) * image + opacity * colour)``; between stripes half image
        and half white.
    """
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * color_label(label, colors)
    blended = (mixed + 0.5).astype(np.uint8)
    void = (label < 0) | (label >= len(colors))
    rows, columns = np.indices(label.shape, sparse=True)
    blended[void] = image[void] // 2 + 128
    blended[void & ((rows + columns) % (2 * STRIPE) < STRIPE)] = VOID_COLOR
    return blended


def legend_of(label: np.ndarray, names: Sequence[str], colors: np.ndarray) -> list[LegendEntry]:
    """Lists the classes of a label, the largest first, each with its share of the pixels.

    Args:
        label: (H, W) class ids; others are void and stand last.
        names: K class names.
        colors: (K, 3) uint8, RGB.
    """
    valid = (label >= 0) & (label < len(names))
    counts = np.bincount(label[valid], minlength=len(names))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    entries = [
        LegendEntry(names[i], (int(red), int(green), int(blue)), _percent(counts[i], label.size))
        for i in order
        for red, green, blue in [colors[i]]
    ]
    void = label.size - int(valid.sum())
    return entries + ([LegendEntry(_VOID_NAME, None, _percent(void, label.size))] if void else [])


def _percent(count: int, total: int) -> str:
    share = 100 * count / total
    return "< 0.1 %" if share < 0.1 else f"{share:.1f} %"


def with_legend(picture: np.ndarray, entries: Sequence[LegendEntry]) -> np.ndarray:
    """Puts a legend below a picture.

    Args:
        picture: (H, W, 3) uint8, RGB.
        entries: what to list; without any the picture is returned as it is.

    Returns:
        (H', W', 3) uint8, RGB; the picture is at the top left, unchanged.
    """
    if not entries:
        return picture
    height, width = picture.shape[:2]
    legend = draw_legend(entries, max(width, MIN_LEGEND_WIDTH))
    sheet = np.full((height + legend.shape[0], legend.shape[1], 3), _PAPER, dtype=np.uint8)
    sheet[:height, :width] = picture
    sheet[height:] = legend
    return sheet


def draw_legend(entries: Sequence[LegendEntry], width: int) -> np.ndarray:
    """Draws colour fields with their names, in as many columns as fit.

    Args:
        entries: what to list, at least one.
        width: of the drawing in pixels; names that do not fit are cut.

    Returns:
        (H, width, 3) uint8, RGB.
    """
    size = min(max(width // 60, 12), 28)
    font = text_font(size)
    row, margin = round(1.6 * size), size // 2
    field = 2 * size + margin
    texts = [f"{entry.name}  {entry.note}".rstrip() for entry in entries]
    widest = field + max(font.getlength(text) for text in texts) + 2 * margin
    columns = max(1, min(len(entries), int((width - margin) // widest)))
    column_width = (width - margin) // columns
    lines = -(-len(entries) // columns)
    sheet = Image.new("RGB", (width, lines * row + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        left = margin + number // lines * column_width
        top = margin + number % lines * row
        box = left, top + (row - size) // 2, left + 2 * size, top + (row + size) // 2
        if entry.color is None:
            sheet.paste(_hatching(box[2] - box[0], box[3] - box[1]), box[:2])
        else:
            draw.rectangle(box, fill=entry.color)
        draw.rectangle(box, outline=_TEXT_COLOR)
        text = fitting_text(text, font, column_width - field - margin)
        draw.text((left + field, top + row / 2), text, fill=_TEXT_COLOR, font=font, anchor="lm")
    return np.asarray(sheet)


def _hatching(width: int, height: int) -> Image.Image:
    paper = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    void = np.full((height, width), -1)
    return Image.fromarray(blend(paper, void, np.zeros((0, 3), dtype=np.uint8)))


def fitting_text(text: str, font: ImageFont.FreeTypeFont, width: float, *, shows_end: bool = False) -> str:
    """Cuts a text so that it is at most so many pixels wide; an ellipsis shows it.

    Its start is left, or its end, in which paths and names of runs differ.
    """
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[1:] if shows_end else text[:-1]
    return f"…{text}" if shows_end else f"{text}…"


@lru_cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the font of all pictures: DejaVu Sans, which Matplotlib brings along on every system."""
    import matplotlib  # only a legend needs it

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def write_picture(path: str | Path, picture: np.ndarray | Image.Image) -> None:
    """Writes a PNG file, whole or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        picture: (H, W, 3) or (H, W) uint8, or a Pillow image.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    try:
        with atomic_writer(path, "wb") as file:
            image.save(file, format="PNG")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error}. Make its folder writable, or name another."
        ) from error
