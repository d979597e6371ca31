"""Random input for the label reader and the parser of declared data sets: only our errors may come out.

    python -m tests.fuzz.images_and_declarations --minutes 10

runs for the given time and says how many examples it tried; ``tests/data/test_fuzz.py`` has a short profile.
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from regseg_d2.common.errors import UserError
from regseg_d2.data.datasets.declared import KEYS, read_declaration
from regseg_d2.data.datasets.spec import DatasetSpec
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import LabelReader
from tests.data.png_files import PNG_SIGNATURE, png_file

# ------------------------------------------------------------------------------------------ label files

READERS = (
    LabelReader(num_classes=3),
    LabelReader(num_classes=3, ignore_value=-1),
    LabelReader(num_classes=3, label_map={0: 255, 1: 0, 7: 2, 70000: 1, -5: 0}),
    LabelReader(num_classes=3, label_map={v: v % 3 for v in range(256)}),
    LabelReader(num_classes=3, label_map={v: 255 if v % 2 else 1 for v in range(65536)}),
    LabelReader(num_classes=3, color_table={(0, 0, 0): 255, (255, 255, 255): 2, (1, 2, 3): 0}),
)
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "PA")
_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG", "PPM", "TGA", "ICO")


@st.composite
def _saved_images(draw) -> bytes:
    """An image that Pillow writes, of any mode, in any format that takes the mode."""
    mode, kind = draw(st.sampled_from(_MODES)), draw(st.sampled_from(_FORMATS))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    values = draw(st.sampled_from((1, 3, 256)))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, values, size, dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("P")
    elif mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 300)
    else:
        image = image.convert(mode)
    options = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    file = io.BytesIO()
    try:
        image.save(file, format=kind, **options)
    except (OSError, ValueError, KeyError, TypeError):  # a format that has no such mode
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@st.composite
def _assembled_pngs(draw) -> bytes:
    """A PNG of chunks that need not fit each other, all with correct checksums."""
    side = st.one_of(st.integers(1, 9), st.sampled_from((0, 1 << 14, (1 << 31) - 1, 1 << 31)))
    width, height = draw(side), draw(side)
    depth = draw(st.sampled_from((1, 2, 4, 8, 16, 3)))
    color = draw(st.sampled_from((0, 2, 3, 4, 6, 1)))
    header = struct.pack(
        ">IIBBBBB", width, height, depth, color, *draw(st.sampled_from(((0, 0, 0), (0, 0, 1), (1, 0, 0))))
    )
    content = draw(st.binary(max_size=60)) * draw(st.sampled_from((1, 4, 40)))
    packed = zlib.compress(content)
    extra = st.tuples(
        st.sampled_from(
            (b"PLTE", b"tRNS", b"eXIf", b"gAMA", b"acTL", b"fcTL", b"tEXt", b"zTXt", b"iCCP", b"abCD")
        ),
        st.one_of(
            st.binary(max_size=30),
            st.just(bytes(768)),
            st.just(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"),
        ),
    )
    before = draw(st.lists(extra, max_size=3))
    cut = draw(st.integers(0, len(packed)))
    chunks = [(b"IHDR", header), *before, (b"IDAT", packed[:cut]), (b"IDAT", packed[cut:])]
    chunks += draw(st.lists(extra, max_size=1))
    if draw(st.booleans()):
        chunks.append((b"IEND", b""))
    return png_file(*chunks)


@st.composite
def _damaged(draw, files) -> bytes:
    """A file that is cut off, or has some bytes changed, removed or added."""
    data = bytearray(draw(files))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(("set", "remove", "insert")))
        if change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif data:
            data[place : place + 1] = b"" if change == "remove" else draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


def label_files() -> st.SearchStrategy[bytes]:
    """Random bytes, and whole, damaged and contradictory images."""
    files = st.one_of(_saved_images(), _assembled_pngs())
    start = st.sampled_from((b"", PNG_SIGNATURE, b"\xff\xd8\xff", b"II*\0", b"GIF89a", b"BM", b"P5\n"))
    noise = st.builds(lambda a, b: a + b, start, st.binary(max_size=200))
    return st.one_of(noise, files, _damaged(files))


def check_label_file(folder: Path, data: bytes, reader: LabelReader) -> str:
    """Reads a file as a label and as an image; returns what became of the label."""
    path = folder / "fuzz.png"
    path.write_bytes(data)
    try:
        image = read_image(path)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    except UserError as error:
        assert "fuzz.png" in str(error)
    try:
        label = reader(path)
    except UserError as error:
        assert "fuzz.png" in str(error)
        return "refused"
    assert label.dtype == np.int32 and label.ndim == 2 and label.size
    assert set(np.unique(label).tolist()) <= {*range(reader.num_classes), reader.ignore_value}
    return "accepted"


# --------------------------------------------------------------------------------------------- YAML files

_VALID = {
    "name": "farm",
    "root": "data",
    "classes": ["soil", {"name": "crop", "color": [60, 160, 60]}, "weed"],
    "ignore_value": 255,
    "label_map": {0: "ignore", 1: "soil", 2: 1, 3: 2},
    "images": "images",
    "labels": "labels",
    "image_suffixes": [".jpg", ".tif"],
    "label_suffixes": ["_mask.png"],
    "seed": 3,
    "splits": {
        "train": {"images": "a", "labels": "b"},
        "val": {"list": "val.txt"},
        "test": 0.5,
        "rest": {"fraction": 0.25},
    },
}
# fmt: off
_WORDS = (
    *KEYS, "list", "fraction", "color", "ignore", "soil", "crop", "train", "/", "..", "~", "~x", "$HOME",
    "$X", ":", "-", "?", "[", "]", "{", "}", "&a", "*a", "!!", "!!int", "!!bool", "!!set", "!!binary",
    "!!timestamp", "<<", "|", ">", "#", "'", '"', "\n", "  ", "\t", "\0", "---", "...", "%", "@", "0x",
    "1e9", ".nan", ".inf", "2001-99-99", "1:60", "yes", "null", "=", "\ud800", "\u200b", "0o7", "1_0", "-1",
    "255", "65536",
)
# fmt: on
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 260),
    st.floats(),
    st.dates(),
    st.binary(max_size=5),
    st.sampled_from(_WORDS),
    st.text(max_size=12),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from(_WORDS), st.integers(-2, 260), st.text(max_size=5)), inner, max_size=4
        ),
    ),
    max_leaves=8,
)


# What is right somewhere in a declaration, for finding out where else it is taken.
_plausible = st.sampled_from(
    (
        0.1,
        0,
        1,
        2,
        255,
        "soil",
        "ignore",
        [1, 2, 3],
        {"list": "val.txt"},
        {"fraction": 0.1},
        [".jpg", ".tif"],
        "a",
    )
).map(copy.deepcopy)  # the next change may be one of the value


@st.composite
def _near_valid(draw):
    """The valid document with some values, at any depth, replaced, removed or added."""
    content = yaml.safe_load(yaml.safe_dump(_VALID))
    for _ in range(draw(st.sampled_from((0, 1, 1, 2, 3)))):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and draw(st.booleans()):
                node = node[key]
                continue
            change = draw(st.sampled_from(("replace", "remove", "add")))
            if change == "remove":
                del node[key]
            elif change == "replace":
                node[key] = draw(st.one_of(_plausible, _values))
            elif isinstance(node, dict):
                node[draw(st.one_of(st.sampled_from(KEYS), _scalars))] = draw(st.one_of(_plausible, _values))
            else:
                node.append(draw(_values))
            break
    return content


def _dumped(content) -> str:
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


@st.composite
def _damaged_texts(draw) -> str:
    """The text of a document with words of YAML put in, and stretches taken out."""
    text = _dumped(draw(_near_valid()))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        text = (
            text[:place] + draw(st.sampled_from(_WORDS)) + text[place + draw(st.sampled_from((0, 0, 1, 5))) :]
        )
    return text


def declarations() -> st.SearchStrategy[bytes]:
    """Random bytes and texts, and documents that are nearly valid."""
    words = st.lists(st.sampled_from(_WORDS), max_size=30).map(" ".join)
    documents = st.one_of(_near_valid().map(_dumped), _near_valid().map(_dumped), _damaged_texts())
    texts = st.one_of(documents, documents, st.text(max_size=100), words)
    encoded = texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(encoded, encoded, encoded, st.binary(max_size=60))


def _is_inside(folder: Path, spec: DatasetSpec) -> bool:
    roots = (spec.base() / root for root in (spec.image_root, spec.label_root))
    return all(os.path.realpath(root).startswith(os.path.realpath(folder)) for root in roots)


def _write_files(root: Path) -> None:
    """Writes the files that the valid document names."""
    for folder, name in (
        ("images", "{}.jpg"),
        ("labels", "{}_mask.png"),
        ("a", "{}.tif"),
        ("b", "{}_mask.png"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (root / folder / name.format(i)).touch()
    (root / "val.txt").write_text("2\n0\n")


def check_declaration(folder: Path, data: bytes) -> str:
    """Reads a declaration and loads what it declares; returns what became of it."""
    path = folder / "fuzz.yaml"
    path.write_bytes(data)
    try:
        specs = read_declaration(path)
    except UserError as error:
        message = str(error)
        assert "fuzz.yaml: " in message or "fuzz.yaml cannot be read" in message
        assert len(message.encode()) < 5000
        return "refused"
    assert specs
    for spec in specs:
        known = {*range(len(spec.classes)), spec.ignore_value}
        assert spec.ignore_value >= len(spec.classes) == len(spec.colors)
        assert set((spec.label_map or {}).values()) | set((spec.color_table or {}).values()) <= known
        if not _is_inside(folder, spec):
            continue  # it may name the whole disk
        try:
            assert all(Path(record["file_name"]).is_file() for record in spec.load())
        except UserError as error:
            assert str(error).encode()
    return "accepted"


# ------------------------------------------------------------------------------------------------ running


def fuzzers(folder: Path, outcomes: Counter, **options) -> dict[str, Callable[[], None]]:
    """The two fuzzers, each a function that tries ``max_examples`` examples.

    Args:
        folder: for files.
        outcomes: counts what became of the examples.
        **options: of hypothesis.
    """
    _write_files(folder / "data")
    profile = settings(
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )

    @profile
    @given(label_files(), st.sampled_from(READERS))
    def labels(data, reader):
        outcomes["labels", check_label_file(folder, data, reader)] += 1

    @profile
    @given(declarations())
    def declared(data):
        outcomes["declarations", check_declaration(folder, data)] += 1

    return {"labels": labels, "declarations": declared}


def main() -> int:
    """Runs all fuzzers in turn until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round (default: a random one)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, about damaged files
    number = random.randrange(1 << 30) if args.seed is None else args.seed
    outcomes: Counter = Counter()
    print(f"first seed: {number}", flush=True)
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            for name, fuzzer in fuzzers(Path(folder), outcomes, max_examples=500).items():
                try:
                    seed(number)(fuzzer)()
                except BaseException:
                    print(f"{name} failed with --seed {number}", flush=True)
                    raise
            number += 1
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{name}: {count} examples {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
