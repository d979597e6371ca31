"""LabelMe's annotations, a JSON file an image, as one annotation file in COCO's format.

The format is what https://github.com/wkentaro/labelme writes (5.x and 6.x): ``shapes`` with a label, a type
and points.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from regseg_d2.common.errors import DatasetError
from regseg_d2.common.files import write_text
from regseg_d2.common.json_files import read_json
from regseg_d2.common.schema import Number, Part, Whole, checked
from regseg_d2.data.images import decoded_file
from regseg_d2.dataset_tools.coco.conversion import CocoSplit

# Corners of the polygon that stands for a circle.
_CORNERS = 72


class _Shape(Part):
    """One shape, in pixels from the upper left corner."""

    label: str
    points: list[tuple[Number, Number]]
    shape_type: str = "polygon"
    mask: str | None = None


class _File(Part):
    """What is read of a file."""

    shapes: list[_Shape]
    imagePath: str  # noqa: N815  the file's own name
    imageHeight: Whole  # noqa: N815
    imageWidth: Whole  # noqa: N815


def write_coco_of_labelme(splits: Sequence[CocoSplit], output: Path) -> list[CocoSplit]:
    """Writes an annotation file for each split of LabelMe's files.

    Args:
        splits: those whose ``annotations`` is a folder are LabelMe's; sub-folders are searched.
        output: folder to write ``<split>_labelme.json`` to.

    Returns:
        The splits, these with the file in place of the folder. Categories are the labels of all of them, in
        alphabetical order.

    Raises:
        DatasetError: a file is none of LabelMe's, or has a shape without an area.
    """
    folders = [split for split in splits if split.annotations.is_dir()]
    files = {split.name: _read_folder(split.annotations) for split in folders}
    labels = sorted({shape.label for read in files.values() for _, file in read for shape in file.shapes})
    ids = {label: i for i, label in enumerate(labels, start=1)}
    written = {}
    for split in folders:
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": label} for label, i in ids.items()],
        }
        for number, (path, file) in enumerate(files[split.name], start=1):
            # LabelMe names the image relative to the file, on Windows with backslashes.
            name = path.relative_to(split.annotations).parent / PureWindowsPath(file.imagePath).name
            size = {"height": file.imageHeight, "width": file.imageWidth}
            content["images"].append({"id": number, "file_name": name.as_posix(), **size})
            for i, shape in enumerate(file.shapes):
                segmentation = _segmentation(shape, size, f"{path}: shapes[{i}]")
                content["annotations"].append(
                    {"image_id": number, "category_id": ids[shape.label], "segmentation": segmentation}
                )
        written[split.name] = output / f"{split.name}_labelme.json"
        write_text(written[split.name], json.dumps(content) + "\n")
    return [CocoSplit(s.name, written.get(s.name, s.annotations), s.images, s.segments) for s in splits]


def _read_folder(folder: Path) -> list[tuple[Path, _File]]:
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise DatasetError(
            f"There is no .json file below {folder}. Expected LabelMe's, one an image; or give the one file "
            "of COCO's format in place of the folder."
        )
    advice = "Expected a file that LabelMe wrote."
    return [
        (path, checked(_File, read_json(path, DatasetError), path, error=DatasetError, advice=advice))
        for path in paths
    ]


def _segmentation(shape: _Shape, size: dict[str, int], place: str) -> Any:
    """Polygons, or a run-length code, of a shape."""
    points = np.array(shape.points, dtype=np.float64).reshape(-1, 2)
    if shape.shape_type == "polygon" and len(points) >= 3:
        return [points.ravel().tolist()]
    if shape.shape_type == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return [[float(x) for x in (left, top, right, top, right, bottom, left, bottom)]]
    if shape.shape_type == "circle" and len(points) == 2:
        radius = math.dist(*points)
        angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
        return [(points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).ravel().tolist()]
    if shape.shape_type == "mask" and len(points) == 2 and shape.mask is not None:
        return _run_lengths(shape.mask, points, size, place)
    raise DatasetError(
        f"{place} ('{shape.label}') is a {shape.shape_type} of {len(points)} points; expected a polygon of "
        "at least three, or a rectangle, circle or mask: lines and points have no area. Redraw or delete it."
    )


def _run_lengths(text: str, points: np.ndarray, size: dict[str, int], place: str) -> dict[str, Any]:
    """A mask that is given as the base64 code of a PNG of its box."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DatasetError(
            f"{place}: its mask is no PNG in base64 ({error}). Save it in LabelMe again."
        ) from error
    with decoded_file(place, "mask", content) as image:
        inner = np.asarray(image) > 0
    left, top = np.round(points.min(0)).astype(int)
    height, width = inner.shape[:2]
    full = np.zeros((size["height"], size["width"]), dtype=np.uint8, order="F")
    if (
        left < 0
        or top < 0
        or top + height > size["height"]
        or left + width > size["width"]
        or inner.ndim != 2
    ):
        raise DatasetError(
            f"{place}: its mask of {height} x {width} pixels at ({left}, {top}) leaves the image of "
            f"{size['height']} x {size['width']}. Save it in LabelMe again."
        )
    full[top : top + height, left : left + width] = inner
    code = coco_mask.encode(full)
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
