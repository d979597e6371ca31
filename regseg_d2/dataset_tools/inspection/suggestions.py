"""Suggests a ``label_map`` or ``color_table`` for labels whose values a data set does not account for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from regseg_d2.data.labels import LabelReader
from regseg_d2.dataset_tools.inspection.samples import num_classes_of

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Suggestion:
    """A line of YAML for the declaration of a data set, and why, with what to check."""

    line: str
    reason: str


def suggest_label_map(values: Sequence[int], reader: LabelReader) -> Suggestion | None:
    """Suggests a map where not all file values are accounted for, or look like a binary mask; else None."""
    found, classes, ignore = sorted(values), num_classes_of(reader), reader.ignore_value
    if reader.label_map is not None:
        unknown = [value for value in found if value not in reader.label_map]
        if not unknown:
            return None
        return Suggestion(
            yaml_map({**reader.label_map, **dict.fromkeys(unknown, ignore)}),
            "The map as it is, and what it lacks ignored. Give values that are classes their index.",
        )
    if is_binary_mask(found, reader):
        return Suggestion(
            yaml_map({0: 0, 255: 1}), "The labels hold 0 and 255 only, as binary masks do: 255 is class 1."
        )
    unknown = [value for value in found if value != ignore and not 0 <= value < classes]
    if not unknown:
        return None
    if classes == 2 and {0, 255} < set(found) and found[0] == 0 and found[-1] == 255:
        return Suggestion(
            yaml_map({value: {0: 0, 255: 1}.get(value, ignore) for value in found}),
            "0 and 255 are background and foreground, as in binary masks; what is between marks borders, "
            "doubt or smoothed edges, and is ignored. If a value of these is a foreground, too, give it 1.",
        )
    ids = [value for value in found if value != ignore]
    kept = {ignore: ignore} if ignore in found else {}
    if unknown == [classes] and ids[0] >= 0:
        one_based = {0: ignore} | {value: value - 1 for value in range(1, classes + 1)}
        return Suggestion(
            yaml_map(one_based | kept),
            f"The values go from {ids[0]} to {classes}, and there are {classes} classes: they look counted "
            "from 1, with 0 for pixels without a class. If 0 is a class, add it to the classes instead.",
        )
    if len(ids) == classes:
        return Suggestion(
            yaml_map({value: index for index, value in enumerate(ids)} | kept),
            f"There are {classes} different values and {classes} classes: paired in ascending order. Check "
            "with the pictures that each value got its class.",
        )
    if len(found) == classes:
        return Suggestion(
            yaml_map({value: index for index, value in enumerate(found)}),
            f"There are {classes} different values and {classes} classes, {ignore} among them, which else "
            "means no class: paired in ascending order. Check with the pictures that each got its class.",
        )
    identity = {value: value for value in range(classes)}
    return Suggestion(
        yaml_map(identity | dict.fromkeys(unknown, ignore) | kept),
        "Values that are no class index ignored. Give those that are classes their index.",
    )


def is_binary_mask(values: Sequence[int], reader: LabelReader) -> bool:
    """Whether labels hold 0 and 255 (or 255 alone) where two classes and no map are declared."""
    return (
        reader.label_map is None and reader.num_classes == 2 and 255 in values and not set(values) - {0, 255}
    )


def suggest_color_table(
    found: Collection[Color], classes: Sequence[str], colors: Sequence[Sequence[int]]
) -> Suggestion | None:
    """Suggests a colour table for labels that are in colour although none is declared; None without colours.

    ``colors``, RGB ``(K, 3)``, are those that the K classes are drawn with.
    """
    if not found:
        return None
    names = {tuple(map(int, color)): name for name, color in zip(classes, colors, strict=True)}
    strange = sorted(color for color in found if color not in names)
    if not strange:
        return Suggestion("color_table: classes", "The labels are painted with the colours of the classes.")
    table = {name: list(color) for color, name in names.items() if color in found}
    return Suggestion(
        _yaml("color_table", {**table, "ignore": [list(color) for color in strange]}),
        "The labels are colour files, with colours that no class has. They are ignored here: write those "
        "that mean a class behind its name.",
    )


def yaml_map(label_map: Mapping[int, int]) -> str:
    """Writes a label map as a line of YAML, ascending by file value."""
    return _yaml("label_map", {value: label_map[value] for value in sorted(label_map)})


def _yaml(key: str, value: Mapping[Any, Any]) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return f"{key}: {text.strip()}"
