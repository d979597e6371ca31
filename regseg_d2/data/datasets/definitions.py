"""What is published about the benchmark data sets: files, names, colours, file values, numbers of images.

Each data set has one YAML file in the folder ``definitions`` beside this module::

    name: cityscapes
    source: where the facts come from (paper, address)
    how_to_get: what to do where files are missing
    layout:                          # {split}, and what splits say besides, stands for its value
      name: cityscapes_{split}       # in the catalogs
      images: folder/{split}         # folders below $DETECTRON2_DATASETS, and the ends of names
      labels: other_folder/{split}
      image_suffix: .jpg             # optional, as label_suffix and list, a text file of stems
    splits: {train: {}, val: {}}
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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from regseg_d2.common.yaml_files import read_own_yaml
from regseg_d2.data.datasets.spec import DatasetSpec

FOLDER = Path(__file__).with_name("definitions")
_KEYS = {"name", "source", "how_to_get", "layout", "splits", "ignore_value", "counts", "checksums"}
_KEYS |= {"ignored_values", "classes"}


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
        specs: the splits by their name within the data set.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_map: Mapping[int, int] | None
    ignore_value: int
    counts: Mapping[str, int]
    checksums: Mapping[str, str]
    specs: Mapping[str, DatasetSpec]


def definition_names() -> list[str]:
    """Names of all data sets that have a definition."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_definition(name: str) -> Definition:
    """Reads the definition of this name, once."""
    content = read_own_yaml(FOLDER / f"{name}.yaml")
    unknown = content.keys() - _KEYS
    if unknown or content["name"] != name:
        raise ValueError(f"definitions/{name}.yaml: unknown keys {sorted(unknown)}, or another name")
    ignore_value = content.get("ignore_value", 255)
    entries = content["classes"]
    facts: dict[str, Any] = {
        "classes": tuple(entry["name"] for entry in entries),
        "colors": tuple(tuple(entry["color"]) for entry in entries),
        "label_map": _label_map(name, entries, content.get("ignored_values"), ignore_value),
        "ignore_value": ignore_value,
    }
    return Definition(
        name=name,
        source=content["source"].strip(),
        counts=dict(content["counts"]),
        checksums=dict(content.get("checksums", {})),
        specs={
            split: _spec({"split": split, **values}, content["layout"], content["how_to_get"], facts)
            for split, values in content["splits"].items()
        },
        **facts,
    )


def _spec(
    values: Mapping[str, str], layout: Mapping[str, str], how_to_get: str, facts: Mapping[str, Any]
) -> DatasetSpec:
    filled = {key: text.format(**values) for key, text in layout.items()}
    suffixes: dict[str, Any] = {
        f"{key}es": (filled[key],) for key in ("image_suffix", "label_suffix") if key in filled
    }
    return DatasetSpec(
        name=filled["name"],
        image_root=filled["images"],
        label_root=filled["labels"],
        list_file=filled.get("list", ""),
        how_to_get=how_to_get,
        **suffixes,
        **facts,
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
