"""Checks a copy of CamVid and writes a small description of its splits.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_camvid.py

The description, ``camvid/splits.json``, lists the images of every split and counts the labelled pixels
of every class. ``datasets/README.md`` says where to get CamVid. Nothing is changed or downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from regseg_d2.data.datasets.camvid import CAMVID_CLASSES, CAMVID_SPLITS, camvid_spec
from regseg_d2.data.datasets.spec import datasets_root
from regseg_d2.data.labels import LabelReader
from regseg_d2.data.mapper import read_pair
from regseg_d2.engine.files import write_text
from regseg_d2.errors import DatasetError, UserError

SPLIT_SIZES = {"train": 367, "val": 101, "test": 233}
IMAGE_SIZE = (360, 480)


def describe_split(root: Path, split: str, expected: int, size: tuple[int, int] = IMAGE_SIZE) -> dict:
    """Reads every image and label of a split and describes them.

    Args:
        root: folder that holds ``camvid``.
        split: "train", "val" or "test".
        expected: number of images that the split must have.
        size: height and width that every image must have.

    Returns:
        ``{"count", "images", "pixels", "ignored_pixels"}``; ``pixels`` by class name.

    Raises:
        DatasetError: the split is not as it should be.
    """
    spec = replace(camvid_spec(split), base=lambda: root)
    records = spec.load()
    if len(records) != expected:
        raise DatasetError(
            f"The split {split} below {root / 'camvid'} has {len(records)} images; expected {expected}. "
            "Copy the folders again."
        )
    reader = LabelReader(
        label_map=spec.label_map, ignore_value=spec.ignore_value, num_classes=len(CAMVID_CLASSES)
    )
    pixels = np.zeros(spec.ignore_value + 1, dtype=np.int64)
    for record in records:
        _, label = read_pair(record, reader)
        if label.shape != size:
            raise DatasetError(
                f"{record['file_name']} has {label.shape[0]} x {label.shape[1]} pixels (height x width); "
                f"expected {size[0]} x {size[1]}, the version of CamVid that results are reported on."
            )
        pixels += np.bincount(label.ravel(), minlength=len(pixels))
    return {
        "count": len(records),
        "images": [record["image_id"] for record in records],
        "pixels": {name: int(pixels[i]) for i, name in enumerate(CAMVID_CLASSES)},
        "ignored_pixels": int(pixels[spec.ignore_value]),
    }


def describe(root: Path, sizes: Mapping[str, int] = SPLIT_SIZES, size: tuple[int, int] = IMAGE_SIZE) -> dict:
    """Describes all splits; no image may be in two of them.

    Args:
        root: folder that holds ``camvid``.
        sizes: number of images that each split must have.
        size: height and width that every image must have.

    Returns:
        ``{"dataset", "classes", "splits"}``.

    Raises:
        DatasetError: a split is not as it should be, or two splits share an image.
    """
    splits = {split: describe_split(root, split, sizes[split], size) for split in CAMVID_SPLITS}
    owner: dict[str, str] = {}
    for split, description in splits.items():
        for image in description["images"]:
            if image in owner:
                raise DatasetError(
                    f"The image {image} is in the splits {owner[image]} and {split} of CamVid."
                )
            owner[image] = split
    return {"dataset": "camvid", "classes": list(CAMVID_CLASSES), "splits": splits}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder that holds camvid/ (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    parser.add_argument("--output", type=Path, help="description to write (default: ROOT/camvid/splits.json)")
    options = parser.parse_args(arguments)
    output = options.output or options.root / "camvid" / "splits.json"
    try:
        description = describe(options.root)
        write_text(output, json.dumps(description, indent=1) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {output} cannot be written: {error}. Name another place with --output.", file=sys.stderr
        )
        return 1
    for split, content in description["splits"].items():
        print(f"camvid_{split}: {content['count']} images, all in order")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
