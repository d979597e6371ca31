"""What is published about the benchmark data sets: names, colours, file values and numbers of images.

Each data set has one YAML file in the folder ``definitions`` beside this module::

    name: cityscapes
    source: where the facts come from (paper, address)
    ignore_value: 255                # optional
    counts: {train: 2975, val: 500}  # images of each split
    checksums: {file.zip: md5:0ab…}  # optional, of the archives that are downloaded
    ignored_values: [0, 1, 2]        # file values without a class; optional
    classes:                         # in the order of the class indices
      - {name: road, color: [128, 64, 128], values: [7]}

``values`` are the file values of a class. Either all classes have them or none; without them a file value is
the class index itself, and ``ignore_value`` marks void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from regseg_d2.common.yaml_files import read_yaml
from regseg_d2.data.datasets.spec import DatasetSpec

FOLDER = Path(__file__).with_name("definitions")
_KEYS = {"name", "source", "ignore_value", "counts", "checksums", "ignored_values", "classes"}


@dataclass(frozen=True)
class Definition:
    """The published facts of one data set.

    Attributes:
        name: name of the data set and of its file.
        source: where the facts come from.
        classes: class names in the order of the class indices.
        colors: one ``(r, g, b)`` a class.
        label_map: ``{file value: class index or ignore_value}``; None where they are equal.
        ignore_value: class index of pixels that count nowhere.
        counts: number of images of each split.
        checksums: ``algorithm:digest`` of each archive of the download for which one is published.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_map: Mapping[int, int] | None
    ignore_value: int
    counts: Mapping[str, int]
    checksums: Mapping[str, str] = field(default_factory=dict)

    def spec(self, name: str, image_root: str, label_root: str, **fields: Any) -> DatasetSpec:
        """Declares a split of the data set.

        Args:
            name: name in the catalogs.
            image_root: folder of the images.
            label_root: folder of the labels.
            **fields: other fields of :class:`DatasetSpec`; they go before what is defined here.
        """
        defined = {
            "classes": self.classes,
            "colors": self.colors,
            "label_map": self.label_map,
            "ignore_value": self.ignore_value,
        }
        return DatasetSpec(name=name, image_root=image_root, label_root=label_root, **{**defined, **fields})


def definition_names() -> list[str]:
    """Names of all data sets that have a definition."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_definition(name: str) -> Definition:
    """Reads a definition, once.

    Args:
        name: name of a file in ``definitions`` without ``.yaml``.
    """
    content = read_yaml(FOLDER / f"{name}.yaml")
    unknown = content.keys() - _KEYS
    if unknown or content["name"] != name:
        raise ValueError(f"definitions/{name}.yaml: unknown keys {sorted(unknown)}, or another name")
    ignore_value = content.get("ignore_value", 255)
    entries = content["classes"]
    return Definition(
        name=name,
        source=content["source"].strip(),
        classes=tuple(entry["name"] for entry in entries),
        colors=tuple(tuple(entry["color"]) for entry in entries),
        label_map=_label_map(name, entries, content.get("ignored_values"), ignore_value),
        ignore_value=ignore_value,
        counts=dict(content["counts"]),
        checksums=dict(content.get("checksums", {})),
    )


def _label_map(
    name: str, entries: list[dict], ignored_values: list[int] | None, ignore_value: int
) -> dict[int, int] | None:
    """Class index of every file value; None if the entries name no values."""
    valued = [entry for entry in entries if "values" in entry]
    if not valued and ignored_values is None:
        return None
    if len(valued) != len(entries):
        raise ValueError(f"definitions/{name}.yaml: all classes have values, or none")
    pairs = [(value, index) for index, entry in enumerate(entries) for value in entry["values"]]
    pairs += [(value, ignore_value) for value in ignored_values or []]
    label_map = dict(pairs)
    if len(label_map) != len(pairs):
        raise ValueError(f"definitions/{name}.yaml: a file value is named twice")
    return dict(sorted(label_map.items()))
