"""Broken image and label files through the start-up check, training and evaluation.

Each either works, in all three, or is an error of ours that names the file, in all three.
"""

import os
import struct

import numpy as np
import pytest
from PIL import Image

import tests.engine.toys  # noqa: F401  registers ToySegmentor
from regseg_d2.common.errors import DatasetError
from regseg_d2.data.checks import check_datasets
from regseg_d2.engine.trainer import Trainer
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy
from tests.data.png_files import png_file

HEIGHT, WIDTH = 20, 30
HTML = b"<!DOCTYPE html><html><body>Please log in to download this file.</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22\nsize 12345\n"


def grey(value=1, dtype=np.uint8, size=(HEIGHT, WIDTH)):
    return np.full(size, value, dtype=dtype)


def colour(size=(HEIGHT, WIDTH)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def put(pixels, format="PNG", mode=None, **options):
    """Returns a function that writes an image, whatever the name of the file says about its format."""

    def write(path):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, format=format, **options)

    return write


def data(content):
    return lambda path: path.write_bytes(content)


def cut(keep):
    return lambda path: path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def cut_jpeg(path):
    put(colour(), "JPEG")(path)
    cut(0.6)(path)


def replaced_by(make):
    def write(path):
        path.unlink()
        make(path)

    return write


def flipped_bytes(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


def bomb(path):
    """A PNG file whose header promises 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(png_file((b"IHDR", header)) + path.read_bytes()[33:])


def turned(path):
    """A JPEG that is stored on its side, as telephones do; upright it has the size of its label."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(colour((WIDTH, HEIGHT)), "JPEG", exif=exif)(path)


def turned_away(path):
    """One whose pixels are stored as large as the label, and are not once it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(colour(), "JPEG", exif=exif)(path)


def animated(pixels, other):
    frames = [Image.fromarray(pixels), Image.fromarray(other)]
    return lambda path: frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:])


def renamed(name):
    """Renames the image and the label."""

    def write(path):
        for folder in ("images", "labels"):
            source = path.parent.parent / folder / "002.png"
            source.rename(source.with_name(name))

    return write


def forbidden(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user (root) may read every file")


IMAGE, LABEL = "images/002.png", "labels/002.png"
# What is broken, where, and how; and a word of the message, or None where it works.
CASES = {
    "image: PNG cut off": (IMAGE, cut(0.5), "cannot be read"),
    "image: PNG without its last bytes": (IMAGE, cut(0.97), "cannot be read"),
    "image: PNG with other bytes in the middle": (IMAGE, flipped_bytes, "cannot be read"),
    "image: JPEG cut off": (IMAGE, cut_jpeg, "cannot be read"),
    "image: no bytes": (IMAGE, data(b""), "cannot be read"),
    "image: zeros": (IMAGE, data(bytes(5000)), "cannot be read"),
    "image: text": (IMAGE, data(b"see the other folder\n"), "cannot be read"),
    "image: download page": (IMAGE, data(HTML), "cannot be read"),
    "image: git-lfs pointer": (IMAGE, data(LFS), "cannot be read"),
    "image: 60000 x 60000 in its header": (IMAGE, bomb, "cannot be read"),
    "image: other size than its label": (IMAGE, put(colour((20, 31))), "20 x 31"),
    "image: 16 bits": (IMAGE, put(grey(300, np.uint16)), "mode"),
    "image: float TIFF": (IMAGE, put(grey(0.5, np.float32), "TIFF"), "mode"),
    "image: on its side, label upright": (IMAGE, turned_away, "30 x 20"),
    "image: folder": (IMAGE, replaced_by(lambda path: path.mkdir()), "images"),
    "image: loop of links": (IMAGE, replaced_by(lambda path: path.symlink_to(path.name)), "images"),
    "image: link to nothing": (IMAGE, replaced_by(lambda path: path.symlink_to("gone.png")), "images"),
    "image: gone": (IMAGE, lambda path: path.unlink(), "labels/002.png"),
    "image: not to be read": (IMAGE, forbidden, "cannot be read"),
    "image: on its side, turned by EXIF": (IMAGE, turned, None),
    "image: CMYK JPEG": (IMAGE, put(colour(), "JPEG", "CMYK"), None),
    "image: grey": (IMAGE, put(grey(90)), None),
    "image: alpha": (IMAGE, put(colour(), mode="RGBA"), None),
    "image: animation": (IMAGE, animated(colour(), grey(3)[..., None].repeat(3, 2)), None),
    "image: BMP under a PNG's name": (IMAGE, put(colour(), "BMP"), None),
    "label: PNG cut off": (LABEL, cut(0.5), "cannot be read"),
    "label: no bytes": (LABEL, data(b""), "cannot be read"),
    "label: download page": (LABEL, data(HTML), "cannot be read"),
    "label: git-lfs pointer": (LABEL, data(LFS), "cannot be read"),
    "label: colours": (LABEL, put(colour()), "color_table"),
    "label: colours and alpha": (LABEL, put(colour(), mode="RGBA"), "color_table"),
    "label: grey and alpha": (LABEL, put(grey(), mode="LA"), "mode"),
    "label: CMYK TIFF": (LABEL, put(colour(), "TIFF", "CMYK"), "mode"),
    "label: JPEG": (LABEL, put(grey(), "JPEG"), "JPEG"),
    "label: float TIFF": (LABEL, put(grey(1.0, np.float32), "TIFF"), "mode"),
    "label: a value without a class": (LABEL, put(grey(17)), "17 (600 pixels)"),
    "label: negative values": (LABEL, put(grey(-1, np.int32), "TIFF"), "-1 (600 pixels)"),
    "label: 16 bits, a value without a class": (LABEL, put(grey(300, np.uint16)), "300 (600 pixels)"),
    "label: other size than its image": (LABEL, put(grey(size=(19, 30))), "19 x 30"),
    "label: folder": (LABEL, replaced_by(lambda path: path.mkdir()), "labels"),
    "label: loop of links": (LABEL, replaced_by(lambda path: path.symlink_to(path.name)), "labels"),
    "label: gone": (LABEL, lambda path: path.unlink(), "images/002.png"),
    "label: 16 bits": (LABEL, put(grey(1, np.uint16)), None),
    "label: palette": (LABEL, put(grey(), mode="P"), None),
    "label: 0 and 255 (ignored)": (LABEL, put(np.where(np.eye(20, 30) > 0, 255, 0).astype(np.uint8)), None),
    "name: spaces": (IMAGE, renamed("a b  c.png"), None),
    "name: other alphabets": (IMAGE, renamed("Straße 街道.png"), None),
    "name: line break": (IMAGE, renamed("two\nlines.png"), None),
    "name: capital suffix": (IMAGE, renamed("002.PNG"), None),
}


def outcome(function):
    """The message of the error, or None where all is well."""
    try:
        function()
    except DatasetError as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", CASES)
def test_in_check_training_and_evaluation(tmp_path, case):
    name, spoil, said = CASES[case]
    path = write_toy(tmp_path) / name
    spoil(path)
    with registered(toy_spec(tmp_path)):
        cfg = toy_cfg(test=("toy",), MODEL__META_ARCHITECTURE="ToySegmentor", MODEL__DEVICE="cpu")
        cfg.OUTPUT_DIR = str(tmp_path / "run")
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 1, 6, 0  # one step sees all
        cfg.TEST.NUM_IMAGES_SHOWN = 0
        trainer = Trainer(cfg)
        training = cfg.clone()
        training.DATASETS.TEST = ()
        outcomes = {
            "check": outcome(lambda: check_datasets(cfg)),
            "training": outcome(Trainer(training).train),
            "evaluation": outcome(lambda: Trainer.test(cfg, trainer.model)),
        }
    for place, message in outcomes.items():
        if said is None:
            assert message is None, place
        else:
            assert message is not None, place
            assert said in message and "002.png" in message, f"{place}: {message}"


def test_there_are_at_least_30_that_are_broken():
    assert sum(said is not None for _, _, said in CASES.values()) >= 30
