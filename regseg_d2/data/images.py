"""Reading image files: one function that decodes, turns by EXIF and names the file in its errors.

The common kinds of files go through ``decoders.py``, all others through Pillow; the pixels are the same.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from regseg_d2.common.errors import DatasetError, check_key
from regseg_d2.data.decoders import decode_rgb

# Modes that Pillow converts to RGB without losing more than an alpha channel. The 16- and 32-bit
# modes are not here: Pillow clips them to 255, which turns such a photo white.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# The kinds of files that are read, whatever their names end in. Pillow knows many more, and starts
# Ghostscript for one of them.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")

# What Pillow raises on a file that is cut off, contradicts itself or is not an image. Its readers of single
# formats do not check all that they index.
_DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    # Of chunks that claim to have gigabytes, Pillow asks for the memory first.
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
)


def read_bytes(path: str | Path, kind: str) -> bytes:
    """Reads a whole file; ``kind``, "image" or "label", is for the message.

    Raises:
        DatasetError: the file is missing or cannot be read.
    """
    try:
        # Without Python's buffer, which is only a copy more.
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError as error:
        raise DatasetError(_missing(path, kind)) from error
    except (OSError, ValueError) as error:
        raise DatasetError(_unreadable(path, kind, error)) from error


def open_image(path: str | Path, kind: str, content: bytes | None = None) -> Image.Image:
    """Opens an image file of :data:`FORMATS` without decoding it; the only place that opens images.

    ``kind``, "image" or "label", is for the message. ``content`` is that of a file in memory, and ``path``
    then what the message calls it.

    Raises:
        DatasetError: the file is missing, damaged, or of another kind.
    """
    try:
        return Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except FileNotFoundError as error:
        raise DatasetError(_missing(path, kind)) from error
    except _DECODING_ERRORS as error:
        raise DatasetError(_unreadable(path, kind, error)) from error


@contextmanager
def decoded_file(path: str | Path, kind: str, content: bytes | None = None) -> Iterator[Image.Image]:
    """Opens an image file and decodes all of it; it is not yet turned by its EXIF orientation.

    Arguments are those of :func:`open_image`.

    Raises:
        DatasetError: the file is missing, cut off, or no image.
    """
    with open_image(path, kind, content) as image:
        try:
            image.load()
        except _DECODING_ERRORS as error:
            raise DatasetError(_unreadable(path, kind, error)) from error
        yield image


def upright(image: Image.Image, path: str | Path, kind: str) -> Image.Image:
    """Turns a decoded image as its EXIF orientation says.

    Raises:
        DatasetError: the EXIF data is damaged, so that nobody knows which side is up.
    """
    try:
        return ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        raise DatasetError(_unreadable(path, kind, error)) from error


def _missing(path: str | Path, kind: str) -> str:
    return (
        f"The {kind} file {path} does not exist. Check the data set's folder, "
        "or remove the sample that names the file."
    )


def _unreadable(path: str | Path, kind: str, error: BaseException) -> str:
    reason = str(error) or type(error).__name__
    return (
        f"The {kind} file {path} cannot be read: {reason}. It is cut off, damaged or not an image of a kind "
        f"that is read ({', '.join(FORMATS)}); copy or download it again, or remove it together with its "
        "partner."
    )


def check_format(format: str) -> None:
    """Raises ConfigError unless ``INPUT.FORMAT`` is an order of channels."""
    check_key("INPUT.FORMAT", format, format in ("RGB", "BGR"), "'RGB' or 'BGR'")


def read_image(path: str | Path, format: str = "RGB") -> np.ndarray:
    """Reads an image as 8-bit colour, turned as its EXIF orientation says.

    Grey images become three equal channels; an alpha channel is dropped.

    Args:
        path: the image file.
        format: order of the channels, "RGB" or "BGR".

    Returns:
        Array ``(H, W, 3)`` of uint8.

    Raises:
        DatasetError: the file is missing, cut off, no image, or has more than 8 bits a channel.
        ConfigError: ``format`` is neither "RGB" nor "BGR".
    """
    check_format(format)
    pixels = decode_rgb(read_bytes(path, "image"))
    if pixels is None:
        pixels = _decode_with_pillow(path)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if format == "BGR" else pixels


def sample_pixels(sample: Mapping[str, Any], format: str) -> np.ndarray:
    """Returns the image of a sample as it is drawn: ``(H, W, 3)``, RGB; ``format`` is that of the sample."""
    pixels = sample["image"].permute(1, 2, 0).cpu().numpy()
    return pixels if format == "RGB" else pixels[..., ::-1]


def _decode_with_pillow(path: str | Path) -> np.ndarray:
    with decoded_file(path, "image") as image:
        return pixels_of(image, path)


def pixels_of(image: Image.Image, path: str | Path) -> np.ndarray:
    """Returns what :func:`read_image` makes of an image that is open already.

    Args:
        image: an image of Pillow; it is decoded where it is not yet.
        path: its file, for errors.

    Returns:
        Array ``(H, W, 3)`` of uint8, RGB.

    Raises:
        DatasetError: it cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        image.load()
    except _DECODING_ERRORS as error:
        raise DatasetError(_unreadable(path, "image", error)) from error
    if image.mode not in _EIGHT_BIT_MODES:
        raise DatasetError(
            f'The image file {path} has mode "{image.mode}"; expected 8 bits a channel '
            "(grey, palette, RGB, RGBA or CMYK). Convert it to an 8-bit image first."
        )
    return np.array(upright(image, path, "image").convert("RGB"))
