"""Reading images: channels, orientation, errors."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from regseg_d2.data.images import read_image
from regseg_d2.data.labels import read_label
from regseg_d2.errors import ConfigError, DatasetError
from tests.data.png_files import png_file

RNG = np.random.default_rng(1)


def test_rgb_and_bgr(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_image(path), pixels)
    np.testing.assert_array_equal(read_image(path, "BGR"), pixels[:, :, ::-1])
    with pytest.raises(ConfigError, match="YUV"):
        read_image(path, "YUV")


def test_grey_and_alpha(tmp_path):
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    rgba = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), rgba[:, :, :3])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_is_refused(tmp_path, dtype):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 4), 1000, dtype=dtype)).save(path)
    with pytest.raises(DatasetError, match=r"deep\.tif has mode"):
        read_image(path)


def test_orientation(tmp_path):
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_off_file(tmp_path, suffix):
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"image file .*cut\.{suffix} cannot be read"):
        read_image(path)


def test_text_and_missing_file(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"text\.png cannot be read"):
        read_image(tmp_path / "text.png")
    with pytest.raises(DatasetError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png")


def test_a_chunk_that_pillow_stumbles_over(tmp_path):
    data = png_file(
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"iCCP", b""),  # behind the pixels; its reader indexes what is not there
    )
    path = tmp_path / "profile.png"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="profile.png cannot be read"):
        read_image(path)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_damaged_orientation_is_an_error_with_the_files_name(tmp_path, format):
    damaged = b"\0M\0*\0\0\0\x08\0\x01\x01\x12\0\x03"
    path = tmp_path / "turned"
    Image.new("RGB", (6, 4)).save(path, format, exif=damaged)
    with pytest.raises(DatasetError, match=r"The image file .*turned cannot be read"):
        read_image(path)
    if format == "PNG":
        Image.new("L", (6, 4)).save(path, format, exif=damaged)
        with pytest.raises(DatasetError, match=r"The label file .*turned cannot be read"):
            read_label(path)
        Image.new("RGB", (6, 4)).save(path, format, exif=damaged)
        with pytest.raises(DatasetError, match=r"The label file .*turned cannot be read"):
            read_label(path, color_table={(0, 0, 0): 0})
