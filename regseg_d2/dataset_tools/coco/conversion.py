"""COCO's annotation files as labels for semantic segmentation.

The two formats are those of https://cocodataset.org/#format-data:

* instances: polygons or run-length codes of single objects;
* panoptic: a colour PNG an image, in which ``R + 256 G + 65536 B`` is the id of a segment, and a category for
  each id.

Class indices count the categories by ascending id, and "background" before them where the pixels that no
annotation covers are a class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
import yaml

from regseg_d2.common.errors import DatasetError, printable_lines
from regseg_d2.common.files import digest_of, write_text
from regseg_d2.common.json_files import read_json
from regseg_d2.common.yaml_files import shown
from regseg_d2.data.datasets.declared import IGNORE, is_color, is_control, is_short
from regseg_d2.dataset_tools.coco.drawing import draw_instances, draw_panoptic
from regseg_d2.dataset_tools.lists import list_text
from regseg_d2.dataset_tools.preparation import Conversion, check_files, convert_files
from regseg_d2.drawing.colors import filled_colors

BACKGROUND = "background"
_LARGEST_SIDE = 1 << 16
# Far more than images have that can be read; labels of so many are made whatever the image's own size is.
_MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class CocoSplit:
    """One annotation file.

    Attributes:
        name: of the split.
        annotations: the JSON file, of instances or panoptic.
        images: folder of the images.
        segments: folder of the panoptic PNGs; None for the one that is named as the JSON file is.
    """

    name: str
    annotations: Path
    images: Path
    segments: Path | None = None


@dataclass(frozen=True)
class _Categories:
    """What the categories of a file become: a class index for each category id, and file values.

    ``uncovered`` is the file value of pixels that no annotation covers.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    index: Mapping[int, int]
    uncovered: int
    ignore_value: int

    @property
    def dtype(self) -> type:
        """Smallest type that holds all file values."""
        return np.uint8 if self.ignore_value <= 255 else np.uint16


def convert_coco(
    name: str, splits: Sequence[CocoSplit], output: Path, *, uncovered: str = "", workers: int = 0
) -> str:
    """Writes labels, ``<output>/<split>/<image>.png``, and a list of each split, ``<output>/<split>.txt``.

    Args:
        name: name of the data set.
        splits: the annotation files; their categories must be the same.
        output: folder to write to.
        uncovered: what pixels are that no annotation covers: "background", a class, or "ignore". Empty: a
            class with instances, ignored with panoptic files.
        workers: processes that draw; 0 draws in this one.

    Returns:
        The YAML text that declares the data set, for ``DATASETS.DECLARED``.

    Raises:
        DatasetError: a file is missing or not as the format says, the splits contradict each other, or the
            output folder holds labels that were made of something else.
    """
    if uncovered not in ("", BACKGROUND, IGNORE):
        raise DatasetError(f'Uncovered pixels are "{uncovered}"; expected {BACKGROUND} or {IGNORE}.')
    files = [_AnnotationFile(split) for split in splits]
    first = files[0].categories(uncovered)
    for file in files[1:]:
        other = file.categories(uncovered)
        if (other.names, other.index, other.uncovered) != (first.names, first.index, first.uncovered):
            raise DatasetError(
                f"The categories of {file.path} are not those of {files[0].path} (or one of the files is "
                "panoptic and the other is not). All splits need the same; convert them one by one into "
                "data sets of their own, or correct the files."
            )
    root = Path(os.path.commonpath([os.path.abspath(p) for p in (output, *(s.images for s in splits))]))
    for split, file in zip(splits, files, strict=True):
        conversions = file.conversions(output / split.name, first)
        names = [image["file_name"] for image in file.images]
        check_files(
            split.images, names, f"images of {file.path}", "Add them, or take them out of the JSON file."
        )
        _check_stamp(output, split.name, {"source_sha256": file.sha256, "uncovered": first.uncovered})
        convert_files(conversions, file.drawing, title=f"Labels of {split.name}", workers=workers)
        pairs = [(split.images / n, c.output) for n, c in zip(names, conversions, strict=True)]
        write_text(output / f"{split.name}.txt", list_text(pairs, root))
    return _declaration(name, [split.name for split in splits], first, root, output)


def _check_stamp(output: Path, split: str, stamp: dict[str, Any]) -> None:
    """Refuses to go on with labels of another file: those that are there are not made again."""
    path, labels = output / f"{split}.json", output / split
    if path.is_file():
        if read_json(path, DatasetError) == stamp:
            return
    elif not (labels.is_dir() and any(labels.iterdir())):
        write_text(path, json.dumps(stamp) + "\n")
        return
    raise DatasetError(
        f"{labels} holds labels that were made of something else, or with other options. Delete it together "
        f"with {path}, or name another output folder."
    )


def _declaration(name: str, splits: list[str], categories: _Categories, root: Path, output: Path) -> str:
    lists = {split: os.path.relpath(os.path.abspath(output / f"{split}.txt"), root) for split in splits}
    content = {
        "name": name,
        "root": str(root),
        "classes": [
            {"name": class_name, "color": list(color)}
            for class_name, color in zip(categories.names, categories.colors, strict=True)
        ],
        "ignore_value": categories.ignore_value,
        "splits": {split: {"list": path} for split, path in lists.items()},
    }
    dump = partial(yaml.safe_dump, content, sort_keys=False, default_flow_style=None, width=110)
    text = dump(allow_unicode=True)
    # Names of strangers, on their way to a terminal.
    return text if printable_lines(text) == text else dump(allow_unicode=False)


class _AnnotationFile:
    """A JSON file of annotations, checked."""

    def __init__(self, split: CocoSplit) -> None:
        self.path = split.annotations
        self.split = split
        self._content, self.sha256 = self._read()
        self.images = self._entries("images", {"id": int, "file_name": str, "height": int, "width": int})
        for i, image in enumerate(self.images):
            self._check_image(i, image)
        self._annotations = self._entries("annotations", {"image_id": int})
        self.panoptic = any("segments_info" in annotation for annotation in self._annotations)
        self.drawing = draw_panoptic if self.panoptic else draw_instances

    def categories(self, uncovered: str) -> _Categories:
        """Returns what the categories become; ``uncovered`` as for :func:`convert_coco`."""
        entries = sorted(self._entries("categories", {"id": int, "name": str}), key=lambda entry: entry["id"])
        names = [entry["name"] for entry in entries]
        for name in names:
            if not name.strip() or any(map(is_control, name)):
                self._fail(f"one of its categories has the name {shown(name)}; expected letters")
        for what in ("id", "name"):
            values = [entry[what] for entry in entries]
            if len(set(values)) != len(values):
                self._fail(f"two of its categories have the same {what}")
        colors = [self._color(entry) for entry in entries]
        with_background = (uncovered or (IGNORE if self.panoptic else BACKGROUND)) == BACKGROUND
        if with_background and BACKGROUND not in names:
            names, colors = [BACKGROUND, *names], [(0, 0, 0), *colors]
        ignore_value = 255 if len(names) <= 255 else 65535
        return _Categories(
            names=tuple(names),
            colors=filled_colors(colors),
            index={entry["id"]: i for i, entry in enumerate(entries, start=len(names) - len(entries))},
            uncovered=names.index(BACKGROUND) if with_background else ignore_value,
            ignore_value=ignore_value,
        )

    def conversions(self, folder: Path, categories: _Categories) -> list[Conversion]:
        """Returns what to draw, one a image."""
        by_image: dict[int, list[tuple[int, dict]]] = {image["id"]: [] for image in self.images}
        if len(by_image) != len(self.images):
            self._fail("two of its images have the same id")
        for i, annotation in enumerate(self._annotations):
            if annotation["image_id"] not in by_image:
                self._fail(
                    f"annotations[{i}] is of an image {annotation['image_id']}, which is not in images"
                )
            by_image[annotation["image_id"]].append((i, annotation))
        payloads = self._panoptic_payload if self.panoptic else self._instances_payload
        conversions = []
        for image in self.images:
            source, payload = payloads(image, by_image[image["id"]], categories)
            drawing = {
                "size": (image["height"], image["width"]),
                "uncovered": categories.uncovered,
                "dtype": categories.dtype,
                **payload,
            }
            stem = PurePosixPath(image["file_name"]).with_suffix("")
            conversions.append(Conversion(source, folder / f"{stem}.png", drawing))
        if len({conversion.output for conversion in conversions}) != len(conversions):
            self._fail("two of its images differ in the suffix only; their labels would have one name")
        return conversions

    def _instances_payload(
        self, image: dict, annotations: list[tuple[int, dict]], categories: _Categories
    ) -> tuple[Path, dict]:
        shapes = []
        for i, annotation in annotations:
            index = self._class_of(f"annotations[{i}]", annotation, categories)
            if not annotation.get("segmentation"):
                self._fail(f"annotations[{i}] has no segmentation; boxes alone cannot become labels")
            shapes.append((index, bool(annotation.get("iscrowd")), annotation["segmentation"], i))
        return self.path, {"shapes": shapes}

    def _panoptic_payload(
        self, image: dict, annotations: list[tuple[int, dict]], categories: _Categories
    ) -> tuple[Path, dict]:
        if len(annotations) != 1:
            self._fail(
                f"image {image['id']} has {len(annotations)} annotations; expected one in a panoptic file"
            )
        i, annotation = annotations[0]
        segments = self._typed(
            annotation.get("segments_info"), f"annotations[{i}].segments_info", {"id": int}
        )
        index = {}
        for j, segment in enumerate(segments):
            place = f"annotations[{i}].segments_info[{j}]"
            index[segment["id"]] = self._class_of(place, segment, categories)
        self._inner_path(annotation.get("file_name"), f"annotations[{i}].file_name")
        folder = self.split.segments or self.path.with_suffix("")
        return folder / annotation["file_name"], {"segments": index}

    def _class_of(self, place: str, entry: dict, categories: _Categories) -> int:
        category = entry.get("category_id")
        if type(category) is not int or category not in categories.index:
            self._fail(f"{place} has the category_id {shown(category)}, which is not in categories")
        return categories.index[category]

    # --------------------------------------------------------------------------------------- checks

    def _read(self) -> tuple[dict, str]:
        try:
            content = read_json(self.path, DatasetError)
        except DatasetError as error:
            raise DatasetError(
                f"The annotation file {error} Correct its name; if it is cut off, copy or export it again."
            ) from error
        if not isinstance(content, dict):
            self._fail(f"it holds a {type(content).__name__}; expected images, annotations and categories")
        return content, digest_of(self.path)

    def _entries(self, key: str, fields: Mapping[str, type]) -> list[dict]:
        entries = self._typed(self._content.get(key), key, fields)
        if not entries and key != "annotations":
            self._fail(f"'{key}' is empty")
        return entries

    def _typed(self, entries: Any, place: str, fields: Mapping[str, type]) -> list[dict]:
        if not isinstance(entries, list):
            self._fail(f"'{place}' is {shown(entries)}; expected a list")
        for i, entry in enumerate(entries):
            for field, kind in fields.items():
                if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
                    self._fail(
                        f"'{place}[{i}]' is {shown(entry)}; expected a mapping with '{field}', a "
                        f"{'whole number' if kind is int else 'text'}"
                    )
        return entries

    def _check_image(self, i: int, image: dict) -> None:
        sides = (image["height"], image["width"])
        if not all(0 < side <= _LARGEST_SIDE for side in sides) or sides[0] * sides[1] > _MOST_PIXELS:
            self._fail(f"'images[{i}]' is of {shown(image['height'])} x {shown(image['width'])} pixels")
        self._inner_path(image["file_name"], f"images[{i}].file_name")

    def _inner_path(self, name: Any, place: str) -> None:
        """Labels are written beside each other below one folder: a name must not lead out of it."""
        is_path = isinstance(name, str) and name.isprintable() and is_short(name)
        path = PurePosixPath(name) if is_path else None
        if path is None or not path.name or path.is_absolute() or ".." in path.parts:
            self._fail(f"'{place}' is {shown(name)}; expected a path below the folder of the images")

    def _color(self, entry: dict) -> tuple[int, int, int] | None:
        color = entry.get("color")
        if color is None:
            return None
        if not is_color(color):
            self._fail(f"the category {entry['id']} has the color {shown(color)}; expected [r, g, b]")
        return color[0], color[1], color[2]

    def _fail(self, problem: str) -> NoReturn:
        raise DatasetError(
            f"The annotation file {self.path} cannot be used: {problem}. Expected COCO's instance or "
            "panoptic format; export it again."
        )
