"""Preparation of Pascal VOC 2012 with the additional annotations of SBD.

VOC's own splits are used as they are published. ``train_aug`` is what both data sets annotate without VOC's
val split: images of VOC's train split keep VOC's labels, the others take SBD's, whose ``.mat`` files become
PNG files. Both are written to ``SegmentationClassAug`` with plain indices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.splits import read_list
from regseg_d2.data.labels import LabelReader
from regseg_d2.dataset_tools.preparation.checks import check_files, check_number
from regseg_d2.dataset_tools.preparation.conversion import Conversion, convert_files, write_list
from regseg_d2.dataset_tools.preparation.matlab import label_values, read_matlab
from regseg_d2.dataset_tools.preparation.preparation import Copy, Preparation

_CURE = "Unpack the archive again; datasets/README.md says which and where."


def _make_train_aug(copy: Copy) -> list[str]:
    """Writes the labels and then the list of ``train_aug``: it names no file that is not there."""
    voc, sbd = copy.folder, copy.root / "benchmark_RELEASE" / "dataset"
    if not sbd.is_dir():
        del copy.specs["train_aug"]
        return [f"{sbd} is not there, so voc_2012_sem_seg_train_aug was not prepared"]
    lists = voc / "ImageSets" / "Segmentation"
    train, val = _names(lists / "train.txt"), _names(lists / "val.txt")
    annotated: set[str] = set()
    for split in ("train", "val"):
        listed = _names(sbd / f"{split}.txt")
        check_number(len(listed), copy.expected(f"sbd_{split}"), f"names in {split}.txt", sbd, _CURE)
        annotated |= listed
    names = sorted((annotated | train) - val)
    check_number(len(names), copy.expected("train_aug"), "images annotated for train_aug", sbd, _CURE)
    check_files(sbd / "cls", [f"{name}.mat" for name in names if name not in train], "annotations", _CURE)
    conversions = [
        Conversion(
            voc / "SegmentationClass" / f"{name}.png" if name in train else sbd / "cls" / f"{name}.mat",
            voc / "SegmentationClassAug" / f"{name}.png",
        )
        for name in names
    ]
    written = convert_files(conversions, _indices, title="SegmentationClassAug", workers=copy.workers)
    write_list(lists / "trainaug.txt", names)
    return [f"SegmentationClassAug: {written} labels written, {len(names) - written} were there"]


def _names(path: Path) -> set[str]:
    return {line.image for line in read_list(path)}


def _indices(conversion: Conversion) -> np.ndarray:
    """Class indices of a PNG of VOC or of a ``.mat`` file of SBD."""
    if conversion.source.suffix == ".png":
        classes = len(load_definition("voc").classes)
        return LabelReader(num_classes=classes)(conversion.source).astype(np.uint8)
    return read_sbd_label(conversion.source)


def read_sbd_label(path: Path) -> np.ndarray:
    """Reads the classes of one image, ``(H, W)`` of uint8, from SBD's annotations (``dataset/cls/*.mat``).

    Raises:
        DatasetError: the file is damaged or something else.
    """
    annotation = read_matlab(path, ["GTcls"])["GTcls"]
    if not isinstance(annotation, dict) or "Segmentation" not in annotation:
        raise DatasetError(f"GTcls in {path} is no annotation of SBD. {_CURE}")
    highest = len(load_definition("voc").classes) - 1
    return label_values(annotation["Segmentation"], path, "GTcls.Segmentation", highest).astype(np.uint8)


prepare_voc = Preparation(
    "voc",
    folder="VOCdevkit/VOC2012",
    archives={"VOCtrainval_11-May-2012.tar": ".", "benchmark.tgz": "."},
    convert=_make_train_aug,
    apart=("train", "val"),
)
