"""Makes the labels of Pascal Context from either of the two forms in which they are published.

- ``VOCdevkit/VOC2010/trainval/NAME.mat``, one an image: ``LabelMap`` with 459 labels, 0 is none. The splits
  are those of VOC 2010.
- ``VOCdevkit/VOC2010/trainval_merged.json`` of the PASCAL in Detail challenge: ``images`` with a phase each,
  and ``annos_segmentation``, segments in COCO's run-length code, of which later ones cover earlier ones.

Both become index PNGs with 0 for background, which is every label that is not among the 59, and 1 to 59.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from regseg_d2.common.errors import DatasetError
from regseg_d2.common.json_files import read_json
from regseg_d2.data.datasets.splits import read_list
from regseg_d2.dataset_tools.preparation.checks import check_files, check_number, check_sum
from regseg_d2.dataset_tools.preparation.conversion import (
    Conversion,
    check_made_alike,
    convert_files,
    write_list,
)
from regseg_d2.dataset_tools.preparation.matlab import label_values, read_matlab
from regseg_d2.dataset_tools.preparation.preparation import Copy, Preparation
from regseg_d2.dataset_tools.run_length import decode_runs

# Below the folder of all data sets; the other paths are below this one.
_FOLDER = "VOCdevkit/VOC2010"
_IMAGES = "JPEGImages"
_LABELS = "SegmentationClassContext"
_LISTS = "ImageSets/SegmentationContext"
_SPLITS = ("train", "val")
_JSON = "trainval_merged.json"
_MATLAB = "trainval"
_VOC_LISTS = "ImageSets/Main"
_HIGHEST_LABEL = 459
# Ids of the 59 classes among the 459 labels, in the order of the classes, from mmsegmentation's converter
# (tools/dataset_converters/pascal_context.py). The evaluation of detail-api names the same ids.
_LABEL_IDS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144),
    *(158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354),
    *(355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
_AGAIN = "Download it again."


def _make_labels(copy: Copy, *, source: str | None = None) -> list[str]:
    """Makes labels and lists of the splits; another JSON than the published one needs ``--partial``."""
    folder = copy.folder
    if (source or _present_source(folder)) == "json":
        if copy.counts:
            check_sum(folder / _JSON, copy.definition.checksums[_JSON], _AGAIN)
        splits, function, prefix = _from_json(folder), label_from_segments, "json_"
    else:
        splits, function, prefix = _from_matlab(folder), label_from_matlab, ""
    for split, conversions in splits.items():
        expected = copy.expected(prefix + split)
        _check_split(folder, split, [conversion.output.stem for conversion in conversions], expected)
    copy.counts = None  # checked, those of the source
    conversions = [conversion for split in splits.values() for conversion in split]
    check_made_alike(conversions, function)
    title = "labels of Pascal Context"
    written = convert_files(conversions, function, title=title, workers=copy.workers)
    for split in splits:
        stems = [conversion.output.stem for conversion in splits[split]]
        write_list(folder / _LISTS / f"{split}.txt", stems)
    return [f"{_LABELS}: {written} labels written, {len(conversions) - written} were there"]


def label_from_matlab(conversion: Conversion) -> np.ndarray:
    """Makes the file values of one image, ``(H, W)`` of uint8 from 0 to 59, from its MATLAB file.

    Raises:
        DatasetError: the file cannot be used.
    """
    content = read_matlab(conversion.source, ["LabelMap"])
    return _value_table()[label_values(content["LabelMap"], conversion.source, "LabelMap", _HIGHEST_LABEL)]


def label_from_segments(conversion: Conversion) -> np.ndarray:
    """Makes the file values of one image, ``(H, W)`` of uint8 from 0 to 59, from its segments.

    The payload is ``(height, width, [(label, segmentation), ...])``.

    Raises:
        DatasetError: a segment cannot be used.
    """
    height, width, segments = conversion.payload
    values = np.zeros((height, width), dtype=np.uint8)
    table = _value_table()
    for label, segmentation in segments:
        try:
            if not 0 <= label <= _HIGHEST_LABEL:
                raise ValueError(f"labels go from 0 to {_HIGHEST_LABEL}")
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"its size is {segmentation['size']}; expected {[height, width]}")
            values[decode_runs(segmentation["counts"], (height, width))] = table[label]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{conversion.source}: a segment of the image {conversion.output.stem} with the label "
                f"{label} cannot be decoded ({type(error).__name__}: {error}). {_AGAIN}"
            ) from error
    return values


def _value_table() -> np.ndarray:
    """File value of each of the 459 labels; that of background for those that are not among the 59."""
    table = np.zeros(_HIGHEST_LABEL + 1, dtype=np.uint8)
    table[list(_LABEL_IDS)] = np.arange(1, len(_LABEL_IDS) + 1)
    return table


def _present_source(folder: Path) -> str:
    if (folder / _JSON).is_file():
        return "json"
    if (folder / _MATLAB).is_dir():
        return "mat"
    raise DatasetError(
        f"Neither {folder / _JSON} nor the folder {folder / _MATLAB} of MATLAB files exists. "
        "datasets/README.md says where to get them; --root names the folder of all data sets."
    )


def _from_json(folder: Path) -> dict[str, list[Conversion]]:
    """One conversion an image, by split. Images of the phase test have no labels and are passed over."""
    path = folder / _JSON
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. datasets/README.md says where to get it.")
    try:
        content = read_json(path, DatasetError)
        segments: dict[Any, list] = defaultdict(list)
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]))
        splits: dict[str, list[Conversion]] = {split: [] for split in _SPLITS}
        for image in sorted(content["images"], key=lambda image: image["file_name"]):
            if image["phase"] in splits:
                output = folder / _LABELS / f"{Path(image['file_name']).stem}.png"
                payload = (image["height"], image["width"], segments[image["image_id"]])
                splits[image["phase"]].append(Conversion(path, output, payload))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"{path} is cut off, damaged or another file ({type(error).__name__}: {error}). {_AGAIN}"
        ) from error
    return splits


def _from_matlab(folder: Path) -> dict[str, list[Conversion]]:
    """One conversion an image of VOC's lists, by split."""
    splits = {}
    for split in _SPLITS:
        stems = sorted(line.image for line in read_list(folder / _VOC_LISTS / f"{split}.txt"))
        check_files(
            folder / _MATLAB,
            [f"{stem}.mat" for stem in stems],
            f"MATLAB files of the split {split}",
            "Unpack trainval.tar.gz again.",
        )
        splits[split] = [
            Conversion(folder / _MATLAB / f"{stem}.mat", folder / _LABELS / f"{stem}.png") for stem in stems
        ]
    return splits


def _check_split(folder: Path, split: str, stems: list[str], expected: int | None) -> None:
    cure = "Download it again; --partial accepts a part of the data set."
    check_number(len(stems), expected, f"images in the split {split} of Pascal Context", folder, cure)
    check_files(
        folder / _IMAGES,
        [f"{stem}.jpg" for stem in stems],
        f"images of the split {split}",
        "Unpack VOCtrainval_03-May-2010.tar again.",
    )


prepare_pascal_context = Preparation(
    "pascal_context_60",
    folder=_FOLDER,
    archives={"VOCtrainval_03-May-2010.tar": ".", "trainval.tar.gz": _FOLDER},
    convert=_make_labels,
    options={
        "--source": {
            "choices": ("json", "mat"),
            "help": f"form of the labels to start from (default: json if {_JSON} is there)",
        }
    },
    description="pascal_context_splits.json",
)
