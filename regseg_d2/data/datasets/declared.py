"""Data sets that are declared in a YAML file; docs/own_data.md is the reference of its keys.

A file describes one data set of any number of splits; each split becomes a ``DatasetSpec`` of the name
``<name>_<split>``. Every key and value is checked when the file is read; the files of images and labels are
looked for when a split is loaded, but for the ends of their names where nobody gives these.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from regseg_d2.common.errors import ConfigError, DatasetError, printable
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import read_yaml, shown
from regseg_d2.data.datasets.guessing import describe_guess, guess_suffixes
from regseg_d2.data.datasets.spec import DatasetSpec
from regseg_d2.data.datasets.splits import Part
from regseg_d2.drawing.colors import filled_colors

logger = logging.getLogger(__name__)

KEYS = (
    "name",
    "root",
    "classes",
    "ignore_value",
    "label_map",
    "color_table",
    "images",
    "labels",
    "image_suffixes",
    "label_suffixes",
    "seed",
    "exact",
    "leave_out",
    "splits",
)
# leave_out: images without a label are passed over.
UNLABELLED = "unlabelled"
# What stands for the ignore value in label_map and color_table.
IGNORE = "ignore"
# color_table: the labels are painted with the colours of the classes.
CLASS_COLORS = "classes"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LARGEST_INDEX = 65535
# Names of data sets, classes and files.
_LONGEST_TEXT = 1000
# File values of 32-bit labels, signed or not.
_FILE_VALUES = range(-(2**31), 2**32)
# Shares such as 0.7, 0.2 and 0.1 have a sum of about 1.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class FixedFolder:
    """The folder that a data set's relative paths start from; two of the same path are equal."""

    path: Path

    def __call__(self) -> Path:
        """Returns the folder."""
        return self.path


def register_declared(paths: Iterable[str | Path]) -> list[str]:
    """Registers the data sets of YAML files, and returns their names in the order of the files.

    Registering a file again is allowed as long as it says the same.

    Raises:
        ConfigError: a file is missing or cannot be used.
        DatasetError: a name is taken by another data set.
    """
    names = []
    for path in paths:
        for spec in read_declaration(path):
            try:
                spec.register()
            except DatasetError as error:
                raise DatasetError(
                    f"{path}: {error} (A file that was changed while this process runs counts as another.)"
                ) from error
            names.append(spec.name)
    return names


def read_declaration(path: str | Path) -> list[DatasetSpec]:
    """Reads a YAML file that declares a data set: its splits, in the order of the file.

    Raises:
        ConfigError: the file is missing, or a key or value of it cannot be used.
    """
    if not isinstance(path, (str, Path)):
        raise ConfigError(f"DATASETS.DECLARED has the entry {shown(path)}; expected names of YAML files.")
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if not os.path.isfile(path):  # unlike Path.is_file it raises nothing on a name of 5000 letters
        raise ConfigError(
            f"The file {printable(str(path), 500)}, which should declare a data set, does not exist. Correct "
            "its name in DATASETS.DECLARED; docs/own_data.md shows how to write one."
        )
    return _Declaration(path, read_yaml(path)).specs()


def is_control(character: str) -> bool:
    """Tells control characters and halves of characters, which can neither be shown nor stand in a path."""
    return unicodedata.category(character) in ("Cc", "Cs")


def is_short(text: str) -> bool:
    """Whether the system takes a text as a path: every name of it has 255 bytes at most."""
    return len(text) <= _LONGEST_TEXT and all(len(name.encode()) <= 255 for name in text.split("/"))


def is_color(value: Any) -> bool:
    """Whether a value is a list of red, green and blue."""
    is_triple = isinstance(value, list) and len(value) == 3
    return is_triple and all(type(part) is int and 0 <= part <= 255 for part in value)


class _Declaration:
    """The checked content of a file."""

    def __init__(self, path: Path, content: Mapping[Any, Any]) -> None:
        self.path = path
        # Splits by fraction share their folders.
        self._guesses: dict[tuple[Path, Path], dict[str, tuple[str, ...]]] = {}
        self._refuse_unknown_keys(content, KEYS, "")
        for key in ("name", "classes", "splits"):
            if key not in content:
                self.fail(f"the key '{key}' is missing; docs/own_data.md has examples.")
        self.content = content
        self.name = self._name("name", content["name"])
        self.classes, self.colors = self._classes(content["classes"])
        self.ignore_value = self._whole_number("ignore_value", 255, range(_LARGEST_INDEX + 1))
        if self.ignore_value < len(self.classes):
            self.wrong(
                "ignore_value",
                self.ignore_value,
                f"none of the class indices 0 to {len(self.classes) - 1}, such as "
                f"{255 if len(self.classes) <= 255 else _LARGEST_INDEX}",
            )
        self.seed = self._whole_number("seed", 0, range(2**63))
        self.folders = self._folders("", content) if content.keys() & {"images", "labels"} else None
        self.label_map = self._label_map()
        self.color_table = self._color_table()
        if self.label_map is not None and self.color_table is not None:
            self.fail(
                "has both label_map and color_table. Labels are read by value or by colour: remove one "
                "(color_table names the classes itself)."
            )

    def specs(self) -> list[DatasetSpec]:
        """Returns the splits."""
        splits = self.content["splits"]
        if not isinstance(splits, dict) or not splits:
            self.wrong("splits", splits, "a name with images and labels, a list or a fraction for each split")
        fields: dict[str, Any] = {
            "classes": self.classes,
            "colors": self.colors,
            "label_map": self.label_map,
            "color_table": self.color_table,
            "ignore_value": self.ignore_value,
            "base": FixedFolder(self._root()),
            "how_to_get": f"It is declared in {self.path}.",
        }
        given = [key for key in ("image_suffixes", "label_suffixes") if key in self.content]
        fields |= {key: self._suffixes(key, self.content[key]) for key in given}
        leaves_out, exact = self._leaves_out_unlabelled(), self._is_exact()
        specs, start = [], 0.0
        for split, value in splits.items():
            name = f"{self.name}_{self._name('splits', split)}"
            key = f"splits.{split}"
            source, share = self._source(key, value)
            if share is not None:
                stop = self._end_of_part(key, start, share)
                source = {**source, "part": Part(start, stop, self.seed, exact)}
                start = stop
            if "list_file" not in source:
                guessed = {} if given else self._guessed(fields["base"](), source)
                source = {**source, **guessed, "leaves_out_unlabelled": leaves_out}
            try:
                specs.append(DatasetSpec(name=name, **fields, **source))
            except DatasetError as error:
                self.fail(str(error), error)
        return specs

    # ------------------------------------------------------------------------------------- messages

    def fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        """Raises an error that names the file."""
        raise ConfigError(f"{self.path}: {message}") from cause

    def wrong(self, key: str, value: Any, expected: str, cure: str = "") -> NoReturn:
        """Raises an error about the value of a key."""
        self.fail(f"'{key}' is {shown(value)} ({type(value).__name__}); expected {expected}.{cure}")

    def _refuse_unknown_keys(self, content: Mapping[Any, Any], known: Sequence[str], section: str) -> None:
        for key in content:
            if key not in known:
                self.fail(
                    f"unknown key {shown(f'{section}{key}' if isinstance(key, str) else key)}"
                    f"{did_you_mean(shown(key), known)}; known keys: {', '.join(known)}."
                )

    # --------------------------------------------------------------------------------------- values

    def _text(self, key: str, value: Any, expected: str) -> str:
        """A text that can be shown and stand in a path."""
        is_text = isinstance(value, str) and value.strip() and not any(map(is_control, value))
        if not is_text or not is_short(value):
            # YAML reads no, on, 12 and 2024-01-01 as other things than texts.
            cure = "" if isinstance(value, (str, list, dict)) else " Put it in quotes to make it a text."
            self.wrong(key, value, expected, cure)
        return value

    def _name(self, key: str, value: Any) -> str:
        expected = "a name of letters, digits, '_', '-' and '.', such as farm"
        if not _NAME.fullmatch(self._text(key, value, expected)):
            self.wrong(key, value, expected)
        return value

    def _whole_number(self, key: str, default: int, allowed: range) -> int:
        value = self.content.get(key, default)
        if type(value) is not int or value not in allowed:
            self.wrong(key, value, f"a whole number from {allowed[0]} to {allowed[-1]}")
        return value

    def _root(self) -> Path:
        text = self._text(
            "root", self.content.get("root", "."), "a folder, absolute or relative to this file"
        )
        folder = os.path.expanduser(os.path.expandvars(text))
        if "$" in folder:
            self.wrong("root", text, "a folder whose variables ($NAME) are set")
        return Path(os.path.abspath(self.path.parent / folder))

    def _suffixes(self, key: str, value: Any) -> tuple[str, ...]:
        expected = "a list of ends of file names, such as [.jpg, _mask.png]"
        if not isinstance(value, list) or not value:
            self.wrong(key, value, expected)
        for i, suffix in enumerate(value):
            if "." not in self._text(f"{key}[{i}]", suffix, "the end of a file name, such as .jpg"):
                self.wrong(f"{key}[{i}]", suffix, "the end of a file name with its dot, such as .jpg")
        return tuple(value)

    def _classes(self, value: Any) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
        if not isinstance(value, list) or not value:
            self.wrong("classes", value, "a list of names, in the order of the class indices")
        names: list[str] = []
        colors: list[tuple[int, int, int] | None] = []
        for i, entry in enumerate(value):
            key, color = f"classes[{i}]", None
            if isinstance(entry, dict):
                self._refuse_unknown_keys(entry, ("name", "color"), f"{key}.")
                color = self._color(f"{key}.color", entry["color"]) if "color" in entry else None
                key, entry = f"{key}.name", entry.get("name")
            name = self._text(key, entry, "a name, or {name: ..., color: [r, g, b]}")
            if name in names:
                self.wrong(key, name, f"another name than that of class {names.index(name)}")
            if name == IGNORE:
                self.wrong(
                    key, name, "a class; pixels without one need no entry here (ignore_value is theirs)"
                )
            names.append(name)
            colors.append(color)
        return tuple(names), filled_colors(colors)

    def _color(self, key: str, value: Any) -> tuple[int, int, int]:
        if not is_color(value):
            self.wrong(key, value, "[red, green, blue], three whole numbers from 0 to 255")
        return value[0], value[1], value[2]

    def _class_index(self, key: str, value: Any) -> int:
        """Index of a class that is named, or given by its index."""
        if value == IGNORE:
            return self.ignore_value
        if isinstance(value, str):
            if value not in self.classes:
                near = did_you_mean(value[:80], [*self.classes, IGNORE])
                self.wrong(key, value, f"the name or index of a class, or {IGNORE}{near}")
            return self.classes.index(value)
        if type(value) is not int or not (0 <= value < len(self.classes) or value == self.ignore_value):
            self.wrong(
                key, value, f"a class's name, its index from 0 to {len(self.classes) - 1}, or {IGNORE}"
            )
        return value

    def _label_map(self) -> dict[int, int] | None:
        value = self.content.get("label_map")
        if "label_map" not in self.content:
            return None
        if not isinstance(value, dict) or not value:
            self.wrong("label_map", value, "{file value: class}, such as {0: ignore, 1: soil}")
        for number in value:
            if type(number) is not int or number not in _FILE_VALUES:
                self.wrong("label_map", number, "whole numbers as keys, the values in the label files")
        return {number: self._class_index(f"label_map.{number}", target) for number, target in value.items()}

    def _color_table(self) -> dict[tuple[int, int, int], int] | None:
        value = self.content.get("color_table")
        if "color_table" not in self.content:
            return None
        expected = "{class: [r, g, b]}, or 'classes' for the colours that the classes have"
        if value == CLASS_COLORS:
            for i, entry in enumerate(self.content["classes"]):
                if not isinstance(entry, dict) or "color" not in entry:
                    self.wrong(
                        f"classes[{i}]", entry, "{name: ..., color: [r, g, b]}, for color_table: classes"
                    )
            value = {name: list(color) for name, color in zip(self.classes, self.colors, strict=True)}
        if not isinstance(value, dict) or not value:
            self.wrong("color_table", value, expected)
        table: dict[tuple[int, int, int], int] = {}
        for target, colors in value.items():
            key = f"color_table.{shown(target)}"
            index = self._class_index(key, target)
            several = isinstance(colors, list) and colors and isinstance(colors[0], list)
            for color in colors if several else [colors]:
                color = self._color(key, color)
                if table.setdefault(color, index) != index:
                    self.wrong(key, list(color), "a colour that no other class has")
        return table

    # --------------------------------------------------------------------------------------- splits

    def _is_exact(self) -> bool:
        value = self.content.get("exact", False)
        if type(value) is not bool:
            self.wrong("exact", value, "true or false: splits by fraction have their size to one image")
        return value

    def _leaves_out_unlabelled(self) -> bool:
        value = self.content.get("leave_out", "")
        if value not in ("", UNLABELLED):
            self.wrong("leave_out", value, f"'{UNLABELLED}': images without a label are passed over")
        return value == UNLABELLED

    def _guessed(self, base: Path, source: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Suffixes where nobody gives them and the usual ones do not pair what is there."""
        folders = base / source["image_root"], base / source["label_root"]
        if folders not in self._guesses:
            guess = guess_suffixes(*folders)
            self._guesses[folders] = {}
            if guess is not None:
                logger.info(
                    "%s: names end in %s (guessed from the files).", self.path, describe_guess(*guess)
                )
                self._guesses[folders] = {"image_suffixes": guess[0], "label_suffixes": guess[1]}
        return self._guesses[folders]

    def _source(self, key: str, value: Any) -> tuple[dict[str, Any], float | None]:
        """Fields of the spec that say where a split's files are, and its share if it is a fraction."""
        if isinstance(value, dict):
            self._refuse_unknown_keys(value, ("images", "labels", "list", "fraction"), f"{key}.")
            if value.keys() == {"images", "labels"}:
                return self._folders(f"{key}.", value), None
            if value.keys() == {"list"}:
                text = self._text(f"{key}.list", value["list"], "the name of a text file")
                return {"image_root": ".", "label_root": ".", **(self.folders or {}), "list_file": text}, None
            if value.keys() == {"fraction"}:
                key, value = f"{key}.fraction", value["fraction"]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.wrong(
                key,
                value,
                "{images: folder, labels: folder}, {list: file}, or a fraction such as 0.8 of the folders "
                "'images' and 'labels' at the top of the file",
            )
        if not 0 < value <= 1:
            self.wrong(key, value, "a fraction above 0 and at most 1")
        return self.folders or self._folders("", self.content), float(value)

    def _folders(self, section: str, content: Mapping[Any, Any]) -> dict[str, str]:
        for key in ("images", "labels"):
            if key not in content:
                self.fail(
                    f"the key '{section}{key}' is missing: the folder of the {key}, absolute or below root."
                )
        return {
            "image_root": self._text(f"{section}images", content["images"], "the folder of the images"),
            "label_root": self._text(f"{section}labels", content["labels"], "the folder of the labels"),
        }

    def _end_of_part(self, key: str, start: float, share: float) -> float:
        stop = start + share
        if stop > 1 + _ROUNDING:
            self.wrong(key, share, f"a fraction of at most {1 - start:.6g}, which the splits before it leave")
        # The parts of 0.7, 0.2 and 0.1 shall leave nothing between them and 1.
        return 1.0 if stop > 1 - _ROUNDING else stop
