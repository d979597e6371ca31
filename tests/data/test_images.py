"""Reading images: channels, orientation, errors."""

import ast
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regseg_d2
from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.images import FORMATS, read_image
from regseg_d2.data.labels import LabelReader, read_label
from regseg_d2.dataset_tools.inspection.samples import inspect_sample
from tests.data.png_files import png_file
from tests.fuzz.readers import read_image_and_label
from tests.fuzz.worker import LimitedReader

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


# ------------------------------------------------------------------------------------------ kinds of files

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    b"4 4 8 [4 0 0 4 0 0] {currentfile 4 string readhexstring pop} image\n%%EOF\n"
)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program of the name that leaves a mark when it is started."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return tmp_path / "started"


def test_a_postscript_file_named_png_starts_no_program(tmp_path, ghostscript):
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    for read in (read_image, read_label, LabelReader(num_classes=3, color_table={(0, 0, 0): 0})):
        with pytest.raises(
            DatasetError, match=r"file .*a\.png cannot be read.*a kind that is read \(PNG, JPEG, TIFF"
        ):
            read(path)
    record = {"image_id": "a", "file_name": str(path), "sem_seg_file_name": str(path)}
    facts = inspect_sample(record, LabelReader(num_classes=3))
    assert len(facts.problems) == 2 and all("a.png cannot be read" in p.text for p in facts.problems)
    assert not ghostscript.exists()
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()
    assert ghostscript.exists()  # what Pillow does by itself


@pytest.mark.parametrize("kind", ["TGA", "ICO", "PCX", "SGI", "DDS", "PDF", "ICNS", "MSP", "XBM"])
def test_other_kinds_are_refused_whatever_their_name(tmp_path, kind):
    mode = "1" if kind in ("MSP", "XBM") else "RGB"
    with open(tmp_path / "a.png", "wb") as file:
        Image.new(mode, (16, 16)).save(file, format=kind)
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_is_read_whatever_its_name(tmp_path, kind):
    pixels = np.full((6, 4, 3), (200, 90, 30), np.uint8)
    with open(tmp_path / "a.xyz", "wb") as file:
        Image.fromarray(pixels).save(file, format=kind)
    assert np.abs(read_image(tmp_path / "a.xyz").astype(int) - pixels).max() <= 8


def test_a_photo_with_several_pictures_is_the_first(tmp_path):
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "a.jpg")[0, 0].tolist() == [254, 0, 0]
    with pytest.raises(DatasetError, match="is a JPEG"):
        read_label(tmp_path / "a.jpg")


def test_images_are_opened_in_one_place():
    root = Path(regseg_d2.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("Image.open", "PIL.Image.open", "cv2.imread")
    ]
    assert found == ["data/images.py"]


def test_a_chunk_that_claims_to_have_gigabytes(tmp_path):
    """Pillow asks for the memory of what it passes over; the process has a gigabyte."""
    Image.fromarray(np.zeros((9, 7), np.uint16)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    start = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + b"\xff\xff\xff\xff" + data[start + 4 :])
    with LimitedReader(read_image_and_label) as reader:
        outcome = reader.read(tmp_path / "a.png")
    assert outcome.kind == "refused" and "a.png cannot be read" in outcome.detail, outcome
