"""Fast decoders: the pixels of Pillow, for the kinds of files that they take, and hands off the others."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.decoders import decode_indices, decode_rgb
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import read_label
from tests.data.png_files import png_chunk, png_file

RNG = np.random.default_rng(0)
# Smooth, so that JPEG has something to do, and of odd size.
SMOOTH = cv2.resize(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8), (61, 43), interpolation=cv2.INTER_CUBIC)
PHOTO = Image.fromarray(SMOOTH)


def _saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _text(key: str, value: str, zip: bool = False) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value, zip=zip)
    return info


def _exif(orientation: int | None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def _xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:RDF tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def _sixteen_bits() -> bytes:
    return cv2.imencode(".png", SMOOTH.astype(np.uint16) * 257)[1].tobytes()


def _interlaced() -> bytes:
    """Adam7's seven passes (PNG specification, section 8), which Pillow does not write; no filter."""
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    lines = [
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in SMOOTH[top::down, left::right]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", SMOOTH.shape[1], SMOOTH.shape[0], 8, 2, 0, 0, 1)
    return png_file((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))


def _animation() -> bytes:
    return _saved(
        PHOTO, "PNG", save_all=True, append_images=[PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    )


PLAIN = {
    "rgb png": _saved(PHOTO, "PNG"),
    "rgb png, fast": _saved(PHOTO, "PNG", compress_level=1),
    "grey png": _saved(PHOTO.convert("L"), "PNG"),
    "png with text": _saved(PHOTO, "PNG", pnginfo=_text("Software", "a program"), dpi=(72, 72)),
    "png with profile": _saved(PHOTO, "PNG", icc_profile=b"profile"),
    "jpeg": _saved(PHOTO, "JPEG"),
    "jpeg 4:4:4": _saved(PHOTO, "JPEG", quality=97, subsampling=0),
    "jpeg 4:2:2": _saved(PHOTO, "JPEG", quality=30, subsampling=1),
    "jpeg 4:2:0": _saved(PHOTO, "JPEG", quality=75, subsampling=2),
    "progressive jpeg": _saved(PHOTO, "JPEG", progressive=True),
    "jpeg with restarts": _saved(PHOTO, "JPEG", restart_marker_blocks=2),
    "rgb jpeg": _saved(PHOTO, "JPEG", keep_rgb=True),
    "grey jpeg": _saved(PHOTO.convert("L"), "JPEG"),
    "jpeg with exif": _saved(PHOTO, "JPEG", exif=_exif(None)),
    "upright jpeg": _saved(PHOTO, "JPEG", exif=_exif(1)),
}
OTHER = {
    "bilevel png": _saved(PHOTO.convert("1"), "PNG"),
    "palette png": _saved(PHOTO.quantize(20), "PNG"),
    "rgba png": _saved(PHOTO.convert("RGBA"), "PNG"),
    "grey and alpha": _saved(PHOTO.convert("LA"), "PNG"),
    "16 bits": _sixteen_bits(),
    "one colour transparent": _saved(PHOTO, "PNG", transparency=(1, 2, 3)),
    "interlaced": _interlaced(),
    "animation": _animation(),
    "turned png": _saved(PHOTO, "PNG", exif=_exif(6)),
    "png turned by xmp": _saved(PHOTO, "PNG", pnginfo=_text("XML:com.adobe.xmp", _xmp(8).decode())),
    "png turned by zipped xmp": _saved(
        PHOTO, "PNG", pnginfo=_text("XML:com.adobe.xmp", _xmp(8).decode(), True)
    ),
    "cmyk jpeg": _saved(PHOTO.convert("CMYK"), "JPEG"),
    **{f"jpeg turned by exif {i}": _saved(PHOTO, "JPEG", exif=_exif(i)) for i in range(2, 9)},
    "jpeg turned by xmp": _saved(PHOTO, "JPEG", xmp=_xmp(3)),
    "several jpegs": _saved(PHOTO, "MPO", save_all=True, append_images=[PHOTO]),
    "bmp": _saved(PHOTO, "BMP"),
    "gif": _saved(PHOTO, "GIF"),
    "tiff": _saved(PHOTO, "TIFF"),
    "webp": _saved(PHOTO, "WEBP"),
}


def _pillow(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_pixels_are_those_of_pillow(name, tmp_path):
    data = {**PLAIN, **OTHER}[name]
    pixels = decode_rgb(data)
    assert (pixels is not None) == (name in PLAIN)
    if pixels is not None:
        np.testing.assert_array_equal(pixels, _pillow(data))
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    path = tmp_path / "file"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path), _pillow(data))


def test_the_kinds_do_turn():
    """The oddities above are really in the files: left alone, they would give other pixels."""
    for name, data in OTHER.items():
        if "turned" in name:
            assert not np.array_equal(_pillow(data), SMOOTH)
    np.testing.assert_array_equal(_pillow(OTHER["interlaced"]), SMOOTH)


VALUES = RNG.integers(0, 21, (23, 31), dtype=np.uint8)
COLORS = RNG.integers(0, 256, 768, dtype=np.uint8).tolist()


def _palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette(COLORS)
    return image


@pytest.mark.parametrize(
    "name, image, options, plain",
    [
        ("grey", Image.fromarray(VALUES), {}, True),
        ("palette", _palette(VALUES), {"bits": 8}, True),
        ("palette, not compressed", _palette(VALUES), {"bits": 8, "compress_level": 0}, True),
        ("palette with transparency", _palette(VALUES), {"bits": 8, "transparency": 0}, True),
        ("palette with text", _palette(VALUES), {"bits": 8, "pnginfo": _text("Title", "x")}, True),
        ("palette of 4 bits", _palette(VALUES % 16), {"bits": 4}, False),
        ("bilevel", Image.fromarray(VALUES > 9), {}, False),
        ("16 bits", Image.fromarray(VALUES.astype(np.uint16) * 300), {}, False),
        ("turned", _palette(VALUES), {"bits": 8, "exif": _exif(3)}, False),
        ("colour", PHOTO, {}, False),
    ],
)
def test_indices_are_those_of_pillow(name, image, options, plain, tmp_path):
    data = _saved(image, "PNG", **options)
    indices = decode_indices(data)
    assert (indices is not None) == plain
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    if plain:
        assert indices.dtype == np.uint8 and indices.flags.c_contiguous
        np.testing.assert_array_equal(indices, upright)
        np.testing.assert_array_equal(indices, VALUES)
    if name != "colour":
        path = tmp_path / "label.png"
        path.write_bytes(data)
        np.testing.assert_array_equal(read_label(path), upright.astype(int))


def test_indices_beyond_the_palette_are_kept():
    data = _saved(_palette(VALUES), "PNG", bits=8)
    start = data.index(b"PLTE") - 4
    data = data[:start] + png_chunk(b"PLTE", data[start + 8 : start + 8 + 15]) + data[start + 12 + 768 :]
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), VALUES)
    np.testing.assert_array_equal(decode_indices(data), VALUES)


def _outcome(function, argument):
    try:
        return function(argument)
    except (DatasetError, OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("name", ["rgb png", "grey png", "jpeg", "progressive jpeg", "jpeg with exif"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_files_end_as_with_pillow(name, tmp_path):
    """Cut off anywhere, or a byte changed: our error, or exactly the pixels that Pillow gives."""
    data, rng, path = PLAIN[name], np.random.default_rng(1), tmp_path / "damaged"
    damaged = [data[: int(rng.integers(len(data)))] for _ in range(25)]
    for _ in range(40):
        place = int(rng.integers(len(data)))
        damaged.append(data[:place] + bytes([data[place] ^ int(rng.integers(1, 256))]) + data[place + 1 :])
    errors = 0
    for content in damaged:
        path.write_bytes(content)
        ours, expected = _outcome(read_image, path), _outcome(_pillow, content)
        errors += ours is None
        assert (ours is None) == (expected is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, expected)
    assert errors >= 20


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    place, chunks = 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _damaged_content(content: bytes, rng: np.random.Generator) -> bytes:
    place, kind = int(rng.integers(len(content) + 1)), int(rng.integers(4))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.bytes(3) + content[place:]
    if kind == 2:  # where the sum of the decompressed data stands
        return content[:-4] + rng.bytes(4)
    return content[:place] + bytes([255 - byte for byte in content[place : place + 1]]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["rgb png", "grey png", "rgb png, fast", "palette"])
def test_damage_under_a_right_checksum_ends_as_with_pillow(name):
    """Files that were written damaged: every chunk's own checksum fits, what it holds does not."""
    data, rng = PLAIN.get(name) or _saved(_palette(VALUES), "PNG", bits=8), np.random.default_rng(2)
    taken = refused = 0
    for _ in range(400):
        chunks = _png_chunks(data)
        i = int(rng.integers(len(chunks)))
        chunks[i] = chunks[i][0], _damaged_content(chunks[i][1], rng)
        if rng.random() < 0.1:
            chunks.insert(int(rng.integers(len(chunks))), chunks[i])
        damaged = png_file(*chunks)
        ours = (decode_indices if name == "palette" else decode_rgb)(damaged)
        refused += ours is None
        if ours is not None:
            taken += 1
            image = Image.open(io.BytesIO(damaged))
            np.testing.assert_array_equal(
                ours, np.array(image if name == "palette" else image.convert("RGB"))
            )
    assert taken >= 20 and refused >= 100


@pytest.mark.parametrize("name", ["rgb png", "jpeg"])
def test_decompression_bombs_are_left_to_pillow(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 43 // 2 - 1)
    path = tmp_path / "bomb"
    path.write_bytes(PLAIN[name])
    assert decode_rgb(PLAIN[name]) is None
    with pytest.raises(DatasetError, match="decompression bomb"):
        read_image(path)
