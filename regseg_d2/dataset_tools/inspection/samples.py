"""What can be said about one pair of files, without stopping at what is wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regseg_d2.common.errors import DatasetError, listed
from regseg_d2.data.images import decoded_file, open_image, read_image
from regseg_d2.data.labels import LabelReader

# Kinds of problems, in the order in which reports list them.
FILES = "files and partners"
IMAGE = "images that cannot be used"
LABEL = "labels that cannot be used"
SIZE = "image and label of different size"
VALUES = "values that mean nothing"
CLASSES = "classes"
DUPLICATE = "images in more than one split"
KINDS = (FILES, IMAGE, LABEL, SIZE, VALUES, CLASSES, DUPLICATE)

# More colours than this in a label file are a photograph or smoothed edges, and no palette.
_MOST_COLORS = 256


@dataclass(frozen=True)
class Problem:
    """Something that training or evaluation would stop at, or that makes scores worthless.

    Attributes:
        kind: one of ``KINDS``.
        file: the file or folder that it is about; "" for the whole data set.
        text: what is wrong, what was expected, and what to do.
    """

    kind: str
    file: str
    text: str


@dataclass
class SampleFacts:
    """Facts of one pair of files; those that could not be found out are None or empty.

    Attributes:
        image_id: the record's.
        image_file: path of the image.
        label_file: path of the label.
        image_size: height and width, turned as EXIF says.
        image_kind: format and mode of the file, such as "JPEG RGB".
        label_kind: the same of the label.
        digest: hash of the image's pixels; equal for equal pictures in different formats.
        values: file values of the label, ascending.
        counts: pixels of each.
        colors: colours of a label file that is in colour although the data set has no colour table.
        problems: what is wrong.
    """

    image_id: str
    image_file: str
    label_file: str
    image_size: tuple[int, int] | None = None
    image_kind: str = ""
    label_kind: str = ""
    digest: str = ""
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    colors: frozenset[tuple[int, int, int]] = frozenset()
    problems: list[Problem] = field(default_factory=list)


def num_classes_of(reader: LabelReader) -> int:
    """Number of classes of the reader of a data set, which always has one."""
    if reader.num_classes is None:
        raise ValueError("a reader without a number of classes is of no data set")
    return reader.num_classes


def known_values(reader: LabelReader) -> dict[int, int]:
    """Returns ``{file value: class index or ignore value}`` of all values that a data set accounts for."""
    if reader.label_map is not None:
        return dict(reader.label_map)
    identity = {value: value for value in range(num_classes_of(reader))}
    return {**identity, reader.ignore_value: reader.ignore_value}


def inspect_sample(record: dict, reader: LabelReader) -> SampleFacts:
    """Reads a record's image and label with the readers that training uses: facts, and every problem met."""
    facts = SampleFacts(str(record["image_id"]), str(record["file_name"]), str(record["sem_seg_file_name"]))
    label_size = None
    try:
        facts.image_kind = _file_kind(facts.image_file)
        image = read_image(facts.image_file)
        facts.image_size = image.shape[:2]
        facts.digest = hashlib.blake2b(
            np.ascontiguousarray(image), digest_size=16, salt=str(image.shape[0]).encode()
        ).hexdigest()
    except DatasetError as error:
        facts.problems.append(Problem(IMAGE, facts.image_file, str(error)))
    try:
        facts.label_kind = _file_kind(facts.label_file)
        raw = reader.file_values(facts.label_file)
        label_size = raw.shape
        facts.values, facts.counts = _counted(raw)
    except DatasetError as error:
        facts.problems.append(Problem(LABEL, facts.label_file, str(error)))
        if reader.color_table is None:
            facts.colors = _file_colors(facts.label_file, facts.label_kind)
    if facts.image_size is not None and label_size is not None and facts.image_size != label_size:
        facts.problems.append(_size_problem(facts, facts.image_size, label_size))
    unknown = [v for v in facts.values.tolist() if v not in known_values(reader)]
    if unknown:
        facts.problems.append(_values_problem(facts, unknown))
    return facts


def _counted(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, ascending, and the pixels of each; counting beats sorting for the usual 8 bits."""
    if raw.dtype not in (np.uint8, np.uint16):
        return np.unique(raw, return_counts=True)
    counts = np.bincount(raw.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _file_kind(path: str) -> str:
    """Format and mode; "" where the file is no image, which its reader says better."""
    try:
        with open_image(path, "image") as image:
            return f"{image.format} {image.mode}"
    except DatasetError:
        return ""


def _file_colors(path: str, kind: str) -> frozenset[tuple[int, int, int]]:
    """Colours of a lossless colour file with few of them; nothing for any other file."""
    if not kind.endswith((" RGB", " RGBA")) or kind.startswith(("JPEG", "MPO")):
        return frozenset()
    try:
        with decoded_file(path, "label") as image:
            counted: Any = image.convert("RGB").getcolors(_MOST_COLORS)
    except DatasetError:
        return frozenset()
    return frozenset(color for _, color in counted or ())


def _size_problem(facts: SampleFacts, image_size: tuple[int, int], label_size: tuple[int, int]) -> Problem:
    height, width = image_size
    return Problem(
        SIZE,
        facts.label_file,
        f"{facts.label_file} has {label_size[0]} x {label_size[1]} pixels (height x width), its image "
        f"{facts.image_file} {height} x {width}. Export the label again at the image's size.",
    )


def _values_problem(facts: SampleFacts, unknown: list[int]) -> Problem:
    pixels = dict(zip(facts.values.tolist(), facts.counts.tolist(), strict=True))
    shown = listed([f"{value} ({pixels[value]} pixels)" for value in unknown], most=8)
    return Problem(VALUES, facts.label_file, f"{facts.label_file} holds values that mean nothing: {shown}.")
