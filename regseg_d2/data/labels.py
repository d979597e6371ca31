"""The one reader of label files: training, evaluation, checks and figures all use it.

A label file holds *file values*. What they mean is said once per data set:

1. Files of one channel (modes 1, L, P, I;16, I) keep their raw values: of a palette file the index
   and not the colour, of a bilevel file 0 and 1.
2. Where a data set has a ``color_table``, its files are read by colour instead, palette files too,
   and the table gives the file value of each colour.
3. ``label_map`` then turns every file value into a class index or the ignore value. Without a map a
   file value is the class index itself.

A value that is not accounted for is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from regseg_d2.common.errors import DatasetError, listed
from regseg_d2.data.decoders import decode_indices
from regseg_d2.data.images import decoded_file, open_image, read_bytes, upright

_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")
_COLOR_MODES = ("L", "P", "RGB", "RGBA")
# Pillow stretches grey PNG files of 2 and 4 bits to 0..255; the file values are these parts of it.
_STRETCHED_GREY = {"L;2": 85, "L;4": 17}
# Largest file value that is looked up in a table; larger ones (32-bit ids) are searched for.
_TABLE_LIMIT = 1 << 16
_UNMAPPED = -1


class LabelReader:
    """Reads label files of one data set; see the module's words for the rules.

    Args:
        label_map: ``{file value: class index or ignore value}``; None keeps the file values.
        color_table: ``{(r, g, b): file value}`` for files that encode classes by colour.
        ignore_value: class index of pixels that count nowhere.
        num_classes: number of classes; None leaves the upper end unchecked.

    Raises:
        DatasetError: the map leads to a class that does not exist, or the colour table is malformed.
    """

    def __init__(
        self,
        *,
        label_map: Mapping[int, int] | None = None,
        color_table: Mapping[tuple[int, int, int], int] | None = None,
        ignore_value: int = 255,
        num_classes: int | None = None,
    ) -> None:
        self.label_map = None if label_map is None else dict(label_map)
        self.color_table = None if color_table is None else dict(color_table)
        self.ignore_value = ignore_value
        self.num_classes = num_classes
        self._values, self._targets = self._known_values()
        self._table = self._lookup_table()
        # Without a map and a number of classes nothing is unknown, and _mapped has nothing to look up.
        bounded = self.label_map is not None or num_classes is not None
        self._bytes = _ByteTable.of(self._values, self._targets) if bounded else None
        self._colors, self._color_values = _sorted_colors(self.color_table)

    def __call__(self, path: str | Path) -> np.ndarray:
        """Reads one label file.

        Returns:
            Array ``(H, W)`` of int32: class indices and the ignore value.

        Raises:
            DatasetError: the file is missing, cut off, of an unsuitable kind, or holds a value or
                colour that the data set does not account for.
        """
        return self.compact(path).astype(np.int32, copy=False)

    def compact(self, path: str | Path) -> np.ndarray:
        """Reads one label file like a call, into one byte a pixel where the file and the classes allow.

        Returns:
            Array ``(H, W)`` of uint8 or int32: class indices and the ignore value. Convert it before doing
            arithmetic with it.

        Raises:
            DatasetError: as for calling the reader.
        """
        raw = self.file_values(path)
        if raw.dtype == np.uint8 and self._bytes is not None:
            if self._bytes.has_unknown(raw):
                unknown = self._bytes.is_unknown[raw]
                raise DatasetError(self._unmapped_message(raw, unknown, path))
            return self._bytes.map(raw)
        return self._mapped(raw, path)

    def file_values(self, path: str | Path) -> np.ndarray:
        """Reads one label file without applying ``label_map``.

        Returns:
            Array ``(H, W)`` of file values in an integer type.

        Raises:
            DatasetError: as for calling the reader, values outside the map excepted.
        """
        if self.color_table is None:
            values = decode_indices(read_bytes(path, "label"))
            if values is not None:
                return values
        with decoded_file(path, "label") as image:
            if image.format in ("JPEG", "MPO"):
                raise DatasetError(
                    f"The label file {path} is a JPEG. Its compression changes label values; "
                    "export the labels again as PNG (a converted copy stays damaged)."
                )
            if self.color_table is not None:
                return self._values_of_colors(image, path)
            return _index_values(image, path)

    def _known_values(self) -> tuple[np.ndarray, np.ndarray]:
        """File values that are accounted for, ascending, and the class of each."""
        classes = self.num_classes
        if self.label_map is not None:
            for value, target in self.label_map.items():
                if target != self.ignore_value and (
                    target < 0 or (classes is not None and target >= classes)
                ):
                    expected = "0 or more" if classes is None else f"0 to {classes - 1}"
                    raise DatasetError(
                        f"label_map sends file value {value} to class {target}; expected {expected}, "
                        f"or {self.ignore_value} to ignore it."
                    )
            known = dict(self.label_map)
        else:
            known = {value: value for value in range(classes or 0)}
            known[self.ignore_value] = self.ignore_value
        values = np.array(sorted(known), dtype=np.int64)
        return values, np.array([known[value] for value in sorted(known)], dtype=np.int32)

    def _lookup_table(self) -> np.ndarray | None:
        """Class of every file value from 0 on, for reading 8- and 16-bit files in one indexing."""
        if len(self._values) and (self._values[0] < 0 or self._values[-1] >= _TABLE_LIMIT):
            return None
        table = np.full(_TABLE_LIMIT, _UNMAPPED, dtype=np.int32)
        # An ignore value below zero cannot be told from "unmapped"; the search handles that.
        if np.any(self._targets == _UNMAPPED):
            return None
        table[self._values] = self._targets
        return table

    def _mapped(self, raw: np.ndarray, path: str | Path) -> np.ndarray:
        if self.label_map is None and self.num_classes is None:
            return self._unbounded(raw, path)
        small = raw.dtype in (np.uint8, np.uint16) or (raw.min() >= 0 and raw.max() < _TABLE_LIMIT)
        if self._table is not None and small:
            label = self._table[raw]
            if label.min() != _UNMAPPED:
                return label
            raise DatasetError(self._unmapped_message(raw, label == _UNMAPPED, path))
        place = np.searchsorted(self._values, raw).clip(max=max(len(self._values) - 1, 0))
        unknown = self._values[place] != raw if len(self._values) else np.ones(raw.shape, dtype=bool)
        if unknown.any():
            raise DatasetError(self._unmapped_message(raw, unknown, path))
        return self._targets[place]

    def _unbounded(self, raw: np.ndarray, path: str | Path) -> np.ndarray:
        """File values as they are, where nothing says how many classes there are."""
        unknown = (raw < 0) & (raw != self.ignore_value)
        if unknown.any():
            found = _counted(*np.unique(raw[unknown], return_counts=True))
            raise DatasetError(f"The label file {path} holds negative values: {found}; expected 0 or more.")
        return raw.astype(np.int32)

    def _unmapped_message(self, raw: np.ndarray, unknown: np.ndarray, path: str | Path) -> str:
        found = _counted(*np.unique(raw[unknown], return_counts=True))
        present = np.unique(raw)
        if set(present.tolist()) <= {0, 255}:
            cure = "It looks like a binary mask; declare the data set with label_map={0: 0, 255: 1}."
        elif self.label_map is not None:
            lines = ", ".join(
                f"{value}: {self.ignore_value}" for value in np.unique(raw[unknown])[:5].tolist()
            )
            cure = (
                f"Add what is missing to label_map (to ignore such pixels: {{{lines}}}), or repair the file."
            )
        else:
            cure = (
                "Declare the data set with a label_map {file value: class index, or "
                f"{self.ignore_value} to ignore}}, or repair the file."
            )
        if self.label_map is not None:
            expected = f"the keys of label_map: {listed(self._values.tolist(), 20)}"
        else:
            expected = f"0 to {len(self._values) - 2} and {self.ignore_value} (ignore)"
        return f"The label file {path} holds values that mean nothing: {found}; expected {expected}. {cure}"

    def _values_of_colors(self, image: Image.Image, path: str | Path) -> np.ndarray:
        if image.mode not in _COLOR_MODES:
            raise DatasetError(
                f'The label file {path} has mode "{image.mode}", but the data set has a colour table; '
                "expected RGB, RGBA, palette or 8-bit grey."
            )
        turned = upright(image, path, "label")
        if turned.mode == "RGBA" and turned.getchannel("A").getextrema() != (255, 255):
            raise DatasetError(
                f"The label file {path} has transparent pixels, which have no class. Save it without an "
                "alpha channel."
            )
        pixels = np.array(turned.convert("RGB")).astype(np.int64)
        codes = _color_code(pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2])
        place = np.searchsorted(self._colors, codes).clip(max=len(self._colors) - 1)
        unknown = self._colors[place] != codes
        if unknown.any():
            values, counts = np.unique(codes[unknown], return_counts=True)
            colors = [(code >> 16, code >> 8 & 255, code & 255) for code in values.tolist()]
            raise DatasetError(
                f"The label file {path} holds colours outside the colour table: {_counted(colors, counts)}; "
                f"the table has {listed(list(self.color_table or ()), 20)}. Add them to color_table, or "
                "repair the file (smoothed edges mix colours: resize labels with nearest neighbour only)."
            )
        return self._color_values[place]


class _ByteTable:
    """Looks up the classes of 8-bit file values, and which are unknown, in passes over single bytes."""

    def __init__(self, targets: np.ndarray, is_unknown: np.ndarray) -> None:
        self.targets = targets
        self.is_unknown = is_unknown
        self._is_identity = bool(np.array_equal(targets[~is_unknown], np.flatnonzero(~is_unknown)))
        # First and last value of each stretch of unknown ones.
        borders = np.flatnonzero(np.diff(np.concatenate([[False], is_unknown, [False]]).astype(np.int8)))
        self._unknown_ranges = [(int(a), int(b) - 1) for a, b in borders.reshape(-1, 2)]

    @classmethod
    def of(cls, values: np.ndarray, targets: np.ndarray) -> _ByteTable | None:
        """The table of the known file values and their classes; None if a class needs more bits."""
        if len(targets) and not 0 <= targets.min() <= targets.max() <= 255:
            return None
        table, is_unknown = np.zeros(256, dtype=np.uint8), np.ones(256, dtype=bool)
        inside = (values >= 0) & (values < 256)
        table[values[inside]] = targets[inside]
        is_unknown[values[inside]] = False
        return cls(table, is_unknown)

    def has_unknown(self, raw: np.ndarray) -> bool:
        """Whether a file value is not accounted for; looks at every pixel."""
        return any(cv2.countNonZero(cv2.inRange(raw, a, b)) for a, b in self._unknown_ranges)

    def map(self, raw: np.ndarray) -> np.ndarray:
        """The class of each pixel."""
        return raw if self._is_identity else cv2.LUT(raw, self.targets)


def _index_values(image: Image.Image, path: str | Path) -> np.ndarray:
    """Raw values of a one-channel image, turned by its EXIF orientation."""
    if image.mode in ("RGB", "RGBA"):
        raise DatasetError(
            f"The label file {path} is a colour image (mode {image.mode}); expected one channel of class "
            "indices. Declare what its colours mean with color_table={(r, g, b): class index, ...}, or "
            "save it as an index PNG."
        )
    if image.mode not in _INDEX_MODES:
        raise DatasetError(
            f'The label file {path} has mode "{image.mode}"; expected one channel of whole numbers '
            "(modes 1, L, P, I;16 or I). Save it as an 8- or 16-bit PNG of class indices."
        )
    values = np.array(upright(image, path, "label"))
    if values.dtype == bool:
        return values.astype(np.uint8)
    if image.format == "PNG" and image.mode == "L":
        values //= np.uint8(_STRETCHED_GREY.get(_raw_mode(path), 1))
    # Big-endian 16-bit files come as such; lookups want the machine's own order.
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _raw_mode(path: str | Path) -> str:
    """Pillow's name for the file's own encoding, which its decoder hides once it has run."""
    with open_image(path, "label") as image:
        arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _color_code(red: Any, green: Any, blue: Any) -> Any:
    """One number for a colour, or for each colour of arrays."""
    return (red << 16) + (green << 8) + blue


def _sorted_colors(
    table: Mapping[tuple[int, int, int], int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the table's colours, ascending, and the file value of each."""
    if table is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if not table:
        raise DatasetError("color_table is empty; expected {(r, g, b): class index, ...}, or None.")
    for color in table:
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise DatasetError(
                f"color_table has the key {color}; expected (r, g, b) with parts from 0 to 255."
            )
    pairs = sorted((_color_code(*color), value) for color, value in table.items())
    codes, values = zip(*pairs, strict=True)
    return np.array(codes, dtype=np.int64), np.array(values, dtype=np.int64)


def _counted(values: Sequence[Any] | np.ndarray, counts: np.ndarray, limit: int = 8) -> str:
    """Lists values with their counts, "12 (340 pixels), ...", the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    return listed([f"{values[i]} ({counts[i]} pixels)" for i in order], limit)


def read_label(
    path: str | Path,
    *,
    label_map: Mapping[int, int] | None = None,
    color_table: Mapping[tuple[int, int, int], int] | None = None,
    ignore_value: int = 255,
    num_classes: int | None = None,
) -> np.ndarray:
    """Reads one label file, with the options, result and errors of a :class:`LabelReader`."""
    reader = LabelReader(
        label_map=label_map, color_table=color_table, ignore_value=ignore_value, num_classes=num_classes
    )
    return reader(path)


def label_reader_for(dataset_name: str) -> LabelReader:
    """Builds the reader that a data set's metadata describes.

    Args:
        dataset_name: a registered name. ``stuff_classes`` must be in its metadata; ``label_map``,
            ``color_table`` and ``ignore_label`` (255) may be.

    Raises:
        DatasetError: the metadata names no classes.
    """
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.get("stuff_classes")
    if not classes:
        raise DatasetError(
            f'The data set "{dataset_name}" has no stuff_classes in its metadata. Register it with '
            "regseg_d2.data.datasets.DatasetSpec, or set MetadataCatalog's stuff_classes."
        )
    return LabelReader(
        label_map=metadata.get("label_map"),
        color_table=metadata.get("color_table"),
        ignore_value=metadata.get("ignore_label", 255),
        num_classes=len(classes),
    )
