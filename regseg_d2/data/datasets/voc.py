"""Pascal VOC 2012, also with the additional annotations of SBD, from the official folder ``VOCdevkit``."""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

# Our name of a split, the folder of its labels and its list. The last of each line is made by
# datasets/prepare_voc.py, in the layout that DeepLab's authors made common.
VOC_SPLITS = {
    "train": ("SegmentationClass", "train.txt"),
    "val": ("SegmentationClass", "val.txt"),
    "trainval": ("SegmentationClass", "trainval.txt"),
    "train_aug": ("SegmentationClassAug", "trainaug.txt"),
}


def voc_spec(split: str) -> DatasetSpec:
    """Describes ``voc_2012_sem_seg_<split>``.

    Args:
        split: one of ``VOC_SPLITS``.
    """
    labels, names = VOC_SPLITS[split]
    return load_definition("voc").spec(
        f"voc_2012_sem_seg_{split}",
        "VOCdevkit/VOC2012/JPEGImages",
        f"VOCdevkit/VOC2012/{labels}",
        image_suffixes=(".jpg",),
        list_file=f"VOCdevkit/VOC2012/ImageSets/Segmentation/{names}",
        how_to_get="datasets/README.md says where to get VOC 2012 and SBD, and how train_aug is made.",
    )


def voc_specs() -> list[DatasetSpec]:
    """All splits."""
    return [voc_spec(split) for split in VOC_SPLITS]
