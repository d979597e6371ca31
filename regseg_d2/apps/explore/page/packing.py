"""Arrays and pictures as text that a page holds: deflated, in base64."""

from __future__ import annotations

import base64
import io
import unicodedata
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from regseg_d2.common.errors import UserError
from regseg_d2.data.images import read_image

# Names that page.js gives the types of arrays.
_TYPES = {"int8": "i1", "uint8": "u1", "uint16": "u2", "int32": "i4", "float32": "f4", "float64": "f8"}
#: Bytes of a figure's file above which it is a JPEG on the page.
LARGE_FIGURE = 1_000_000
JPEG_QUALITY = 82
_PICTURE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def deflate(data: bytes) -> bytes:
    """Compresses as a browser's ``DecompressionStream("deflate-raw")`` reads it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def base64_text(data: bytes) -> str:
    """The bytes in base64."""
    return base64.b64encode(data).decode("ascii")


def base64_length(count: int) -> int:
    """Letters that so many bytes take in base64."""
    return -(-count // 3) * 4


def pack(array: np.ndarray) -> dict[str, str]:
    """An array as ``{"type": ..., "data": ...}``: little endian, row by row, deflated, base64.

    Args:
        array: any shape, which is not kept; int8, uint8, uint16, int32, float32 or float64.
    """
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": _TYPES[array.dtype.name], "data": base64_text(deflate(little.tobytes()))}


def pack_classes(label: np.ndarray, num_classes: int) -> dict[str, str]:
    """Packs classes of pixels as their number plus one; what is none of the K classes is 0."""
    label = np.asarray(label)
    valid = (label >= 0) & (label < num_classes)
    dtype = np.uint8 if num_classes < 256 else np.uint16
    return pack(np.where(valid, label + 1, 0).astype(dtype))


def pack_positions(positions: np.ndarray) -> dict[str, object]:
    """Packs points of the plane (P, 2) in 65,536 steps of one size between their extremes."""
    positions = np.asarray(positions, np.float64).reshape(-1, 2)
    if not len(positions):
        return pack(np.zeros((0, 2), np.uint16)) | {"low": [0.0, 0.0], "step": 1.0}
    low = positions.min(0)
    step = float((positions.max(0) - low).max()) / 65535 or 1.0
    return pack(np.rint((positions - low) / step).astype(np.uint16)) | {"low": low.tolist(), "step": step}


def jpeg_uri(pixels: np.ndarray) -> str:
    """A data URI of a picture (H, W, 3) uint8, RGB."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64_text(stream.getvalue())}"


def file_uri(path: str | Path) -> str:
    """A data URI of a PNG or SVG file; of a large one, a sheet of photos, a JPEG of the PNG of that name.

    Raises:
        UserError: the file has another ending, or cannot be read.
        DatasetError: the PNG beside a large figure is damaged.
    """
    path = Path(path)
    kind = _PICTURE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"'{path}' cannot be shown on the page: expected a file that ends in .png or .svg.")
    try:
        content = path.read_bytes()
        raster = path.with_suffix(".png")
        if len(content) > LARGE_FIGURE and raster.is_file():
            return jpeg_uri(read_image(raster))
        return f"data:{kind};base64,{base64_text(content)}"
    except OSError as error:
        raise UserError(f"'{path}' cannot be read for the page: {error.strerror}.") from error


def shrunken(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 at a smaller size (height, width); at its own it is returned as it is."""
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def thinned(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) at a smaller size (height, width): of each pixel there the value at its center."""
    rows, columns = (
        ((np.arange(small) + 0.5) * large / small).astype(int)
        for small, large in zip(size, label.shape, strict=True)
    )
    return np.asarray(label)[rows[:, None], columns]


def shown_text(text: str) -> str:
    """A name as a page can hold it: control characters and halves of characters become a replacement mark."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
