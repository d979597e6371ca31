"""Label images of COCO's polygons, run-length codes and panoptic PNGs.

Where instances overlap, the smaller one is on top, and the later one of two of the same size: a spoon
on a table keeps its pixels whatever the order in the file. Crowds, which are drawn roughly around many
objects, are below all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from regseg_d2.common.errors import DatasetError
from regseg_d2.common.yaml_files import shown
from regseg_d2.data.images import decoded_file
from regseg_d2.dataset_tools.preparation import Conversion
from regseg_d2.dataset_tools.run_length import run_lengths


def draw_instances(conversion: Conversion) -> np.ndarray:
    """Draws the instances of one image, the largest first; file values ``(H, W)``.

    Args:
        conversion: its payload has ``size``, ``uncovered``, ``dtype`` and ``shapes``: class index, whether it
            is a crowd, segmentation, and place in the file.

    Raises:
        DatasetError: a segmentation is malformed.
    """
    payload = conversion.payload
    label = np.full(payload["size"], payload["uncovered"], dtype=payload["dtype"])
    codes = [
        (
            _run_lengths(segmentation, payload["size"], f"{conversion.source}: annotations[{place}]"),
            index,
            crowd,
        )
        for index, crowd, segmentation, place in payload["shapes"]
    ]
    # Sorting is stable: of two that are equally large the later one is drawn later.
    for code, index, _ in sorted(codes, key=lambda c: (not c[2], -int(coco_mask.area(c[0])))):
        label[coco_mask.decode(code).astype(bool)] = index
    return label


def _run_lengths(segmentation: Any, size: tuple[int, int], place: str) -> dict:
    """COCO's compressed run-length code of a segmentation; pycocotools itself checks very little."""
    height, width = size
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, size, place)
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise DatasetError(
            f"{place} has the segmentation {shown(segmentation)}; expected polygons, or a run-length code of "
            f"size [{height}, {width}]. Export the annotations again."
        )
    try:
        counts = run_lengths(segmentation.get("counts"), size).tolist()
    except ValueError as error:
        raise DatasetError(
            f"{place} has a run-length code that is not one of {height} x {width} pixels: {error}. "
            "Export the annotations again."
        ) from error
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _check_polygon(polygon: Any, size: tuple[int, int], place: str) -> None:
    numbers = isinstance(polygon, list) and all(type(c) in (int, float) for c in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise DatasetError(
            f"{place} has the polygon {shown(polygon)}; expected [x, y, x, y, ...] of three or more corners. "
            "Remove or correct it."
        )
    # One image's size beside the image is far more than rounding; "not <" finds NaN as well.
    limit = 2 * max(size)
    if not all(-limit < c < limit for c in polygon):
        raise DatasetError(
            f"{place} has a polygon far outside of its image of {size[0]} x {size[1]} pixels. Correct it."
        )


def draw_panoptic(conversion: Conversion) -> np.ndarray:
    """Gives the pixels of each segment its class; file values ``(H, W)``.

    Args:
        conversion: of a panoptic PNG; its payload has ``size``, ``uncovered``, ``dtype`` and ``segments``,
            the class index of each id.

    Raises:
        DatasetError: the PNG cannot be read, has another size, or holds an id without a segment.
    """
    payload = conversion.payload
    with decoded_file(conversion.source, "label") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f'The panoptic file {conversion.source} has mode "{image.mode}"; expected RGB, which encodes '
                "the ids of segments."
            )
        pixels = np.array(image.convert("RGB")).astype(np.int64)
    if pixels.shape[:2] != payload["size"]:
        raise DatasetError(
            f"The panoptic file {conversion.source} has {pixels.shape[0]} x {pixels.shape[1]} pixels; the "
            f"annotation file says {payload['size'][0]} x {payload['size'][1]} (height x width)."
        )
    ids = pixels @ np.array([1, 256, 65536])
    found, place = np.unique(ids, return_inverse=True)
    classes = {0: payload["uncovered"], **payload["segments"]}
    unknown = [i for i in found.tolist() if i not in classes]
    if unknown:
        raise DatasetError(
            f"The panoptic file {conversion.source} holds segments {shown(unknown)}, which the annotation "
            "file does not name. Export both again."
        )
    values = np.array([classes[i] for i in found.tolist()], dtype=payload["dtype"])
    return values[place].reshape(payload["size"])
