"""Preparation of COCO-Stuff 10K, version 1.1: its MATLAB files become index PNGs with the same values.

Each file ``annotations/NAME.mat`` has the label matrix ``S``, 0 for unlabeled and 1 to 182 for the ids, and
the names of the 182 ids. Version 1.0 counted otherwise: 172 names, with 1 for unlabeled.
"""

from __future__ import annotations

import numpy as np

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.splits import read_list
from regseg_d2.dataset_tools.preparation.checks import check_files, check_number
from regseg_d2.dataset_tools.preparation.conversion import Conversion, check_made_alike, convert_files
from regseg_d2.dataset_tools.preparation.matlab import label_values, read_matlab
from regseg_d2.dataset_tools.preparation.preparation import Copy, Preparation

_FOLDER = "coco_stuff10k"
_LABELS = "labels"
_IDS = 182
_CURE = "Unpack cocostuff-10k-v1.1.zip again."


def _make_labels(copy: Copy) -> list[str]:
    folder = copy.folder
    names = []
    for split in copy.specs:
        listed = [line.image for line in read_list(folder / "imageLists" / f"{split}.txt")]
        expected = copy.expected(split)
        check_number(len(listed), expected, f"names in imageLists/{split}.txt", folder, _CURE)
        for kind, suffix in (("images", ".jpg"), ("annotations", ".mat")):
            check_files(folder / kind, [name + suffix for name in listed], f"{kind} of {split}", _CURE)
        names += listed
    conversions = [
        Conversion(folder / "annotations" / f"{name}.mat", folder / _LABELS / f"{name}.png") for name in names
    ]
    check_made_alike(conversions, label_from_matlab)
    title = "labels of COCO-Stuff 10K"
    written = convert_files(conversions, label_from_matlab, title=title, workers=copy.workers)
    return [f"{_LABELS}: {written} written, {len(conversions) - written} were there"]


def label_from_matlab(conversion: Conversion) -> np.ndarray:
    """Makes the file values of one image, ``(H, W)`` of uint8 from 0 to 182, from its MATLAB file.

    Raises:
        DatasetError: the file cannot be used.
    """
    path = conversion.source
    content = read_matlab(path, ["S", "names"])
    names = len(content["names"]) if isinstance(content["names"], list) else 0
    if names != _IDS:
        raise DatasetError(
            f"{path} has {names} names of classes; expected {_IDS}, as in version 1.1 of COCO-Stuff 10K "
            "(version 1.0 has 172 and other values). Take cocostuff-10k-v1.1.zip."
        )
    return label_values(content["S"], path, "S", _IDS).astype(np.uint8)


prepare_coco_stuff_10k = Preparation(
    "coco_stuff_10k",
    folder=_FOLDER,
    archives={"cocostuff-10k-v1.1.zip": _FOLDER},
    convert=_make_labels,
)
