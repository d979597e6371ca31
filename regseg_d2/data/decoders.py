"""Fast decoders of the plain kinds of PNG and JPEG; every other file is left to Pillow.

Which kind a file is stands in its header, and only the header decides. The pixels are those that Pillow
gives: the formats leave no choice for PNG, and its JPEGs come from libjpeg-turbo too. Pillow also has the
last word on damaged files: what a decoder here refuses is handed back as "not plain".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import deflate
import kornia_rs.io as kornia_io
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
# Chunks that change neither a pixel nor the orientation. A file with another one (tRNS: transparency,
# eXIf: orientation, acTL: animation, compressed texts, which may hold an orientation) is not plain.
_PLAIN_CHUNKS = frozenset(
    (b"PLTE", b"bKGD", b"cHRM", b"cICP", b"gAMA", b"hIST", b"iCCP", b"pHYs")
) | frozenset((b"sBIT", b"sPLT", b"sRGB", b"tEXt", b"tIME"))
# Texts in which programs keep an orientation.
_EXIF_TEXTS = (b"exif", b"Raw profile type", b"XML:com.adobe.xmp")

_JPEG_START = b"\xff\xd8"
_JPEG_SCAN = 0xDA
# Start-of-frame markers: baseline, extended and progressive Huffman coding ...
_JPEG_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
# ... and the others (lossless, hierarchical, arithmetic coding).
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_APP1, _JPEG_APP2 = 0xE1, 0xE2


def decode_rgb(data: bytes) -> np.ndarray | None:
    """Decodes a plain image file: PNG or JPEG, grey or RGB of 8 bits, upright.

    Returns:
        RGB array ``(H, W, 3)`` of uint8; None for a file that is not plain, or damaged.
    """
    if data.startswith(_JPEG_START):
        return _decode_jpeg(data) if _is_plain_jpeg(data) else None
    png = _read_png_header(data)
    if png is None or png.other_chunks or png.color_type not in (_GREY, _RGB):
        return None
    pixels = _decode_png(data, png)
    if pixels is not None and png.color_type == _GREY:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels


def decode_indices(data: bytes) -> np.ndarray | None:
    """Decodes a plain label file: PNG, grey or palette of 8 bits, upright.

    Returns:
        Array ``(H, W)`` of uint8: grey values, or palette indices; None for a file that is not plain, or
        damaged.
    """
    png = _read_png_header(data)
    # Transparency says nothing about a label's values.
    if png is None or png.other_chunks - {b"tRNS"} or png.color_type not in (_GREY, _PALETTE):
        return None
    indices = _decode_png(data, png)
    return None if indices is None else indices[:, :, 0]


# ------------------------------------------------------------------------------------------------- PNG


@dataclass(frozen=True)
class _PngHeader:
    """What the chunks of a PNG of 8 bits, not interlaced, say.

    ``pixels`` are starts and ends of the parts of the compressed pixels, ``other_chunks`` the kinds of chunks
    that may change pixels or orientation.
    """

    height: int
    width: int
    color_type: int
    pixels: list[tuple[int, int]]
    other_chunks: frozenset[bytes]


def _read_png_header(data: bytes) -> _PngHeader | None:
    """Walks over the chunks (PNG specification, section 5); None unless 8 bits, not interlaced and whole."""
    if not data.startswith(_PNG_SIGNATURE + b"\0\0\0\x0dIHDR") or not _is_sound(data, 8, 33):
        return None
    width, height, depth, color_type, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    if depth != 8 or any(methods) or not 0 < width * height <= _largest_image():
        return None
    place = 33
    pixels: list[tuple[int, int]] = []
    others: set[bytes] = set()
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IEND":
            return (
                _PngHeader(height, width, color_type, pixels, frozenset(others)) if end <= len(data) else None
            )
        if kind == b"IDAT":
            pixels.append((place + 8, end - 4))
        elif kind == b"PLTE" and (length % 3 or not 0 < length <= 768 or not _is_sound(data, place, end)):
            return None
        elif kind not in _PLAIN_CHUNKS or (kind == b"tEXt" and data[place + 8 : end].startswith(_EXIF_TEXTS)):
            others.add(kind)
        place = end
    return None


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """Whether a chunk is there in full and its checksum is right."""
    return end <= len(data) and zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(
        data[end - 4 : end], "big"
    )


def _decode_png(data: bytes, png: _PngHeader) -> np.ndarray | None:
    """Decodes the pixels; palette indices, which are stored like grey values, as such.

    In two steps: the PNG decoder's own decompression is slower, and does not look at the Adler-32 sum at the
    compressed data's end, which tells whether it is damaged.
    """
    channels = 3 if png.color_type == _RGB else 1
    lines_size = png.height * (1 + channels * png.width)
    try:
        lines = deflate.zlib_decompress(b"".join([data[a:b] for a, b in png.pixels]), lines_size)
    except deflate.DeflateError:
        return None
    if len(lines) != lines_size:
        return None
    try:
        return kornia_io.decode_image_png_u8(
            _uncompressed_png(lines, png), (png.height, png.width), "rgb" if channels == 3 else "mono"
        )
    except Exception:  # the decoder raises nothing more special, where a line's filter does not exist
        return None


def _uncompressed_png(lines: bytes | bytearray, png: _PngHeader) -> bytes:
    """A PNG of grey or RGB pixels around the lines, which are stored as they are."""
    color_type = _RGB if png.color_type == _RGB else _GREY
    header = struct.pack(">IIBBBBB", png.width, png.height, 8, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", deflate.zlib_compress(lines, 0)), (b"IEND", b""))
    parts: list[bytes | bytearray] = [_PNG_SIGNATURE]
    for kind, content in chunks:
        sum_of_all = deflate.crc32(content, deflate.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", sum_of_all)]
    return b"".join(parts)


# ------------------------------------------------------------------------------------------------ JPEG


def _is_plain_jpeg(data: bytes) -> bool:
    """Walks over the segments before the first scan (ITU-T T.81, annex B)."""
    place, has_plain_frame = len(_JPEG_START), False
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == _JPEG_SCAN:
            return has_plain_frame
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : end]
        if marker in _JPEG_OTHER_FRAMES or _has_more_to_say(marker, segment):
            return False
        if marker in _JPEG_PLAIN_FRAMES:
            has_plain_frame = _is_plain_frame(segment)
        place = end
    return False


def _is_plain_frame(segment: bytes) -> bool:
    if len(segment) < 6:
        return False
    precision, height, width, components = struct.unpack_from(">BHHB", segment)
    return precision == 8 and components in (1, 3) and 0 < height * width <= _largest_image()


def _has_more_to_say(marker: int, segment: bytes) -> bool:
    """Whether a segment turns the image, or begins a file of several images."""
    if marker == _JPEG_APP1:
        return not _is_upright(segment)
    return marker == _JPEG_APP2 and segment.startswith(b"MPF\0")


def _is_upright(segment: bytes) -> bool:
    """Whether an APP1 segment (Exif or XMP) says nothing of an orientation, or "upright"."""
    if not segment.startswith(b"Exif\0\0"):
        return b"Orientation" not in segment
    exif = Image.Exif()
    try:
        exif.load(segment)
    except (SyntaxError, ValueError, struct.error, OSError):
        return False
    return exif.get(ExifTags.Base.Orientation, 1) == 1


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    try:
        # "strict": a file that is cut off is an error, and not an image with a grey rest.
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None


def _largest_image() -> int:
    """Pixels from which on Pillow has its say about decompression bombs."""
    return Image.MAX_IMAGE_PIXELS or 1 << 62
