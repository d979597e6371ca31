"""Cityscapes, fine and coarse, from the official folders ``leftImg8bit``, ``gtFine`` and ``gtCoarse``.

The labels are read from ``*_labelIds.png`` of the download itself: the label map turns label ids into the 19
classes. Nothing has to be prepared.
"""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

CITYSCAPES_SPLITS = {"fine": ("train", "val", "test"), "coarse": ("train", "train_extra", "val")}


def cityscapes_spec(kind: str, split: str) -> DatasetSpec:
    """Describes ``cityscapes_<kind>_sem_seg_<split>``.

    Args:
        kind: "fine" or "coarse".
        split: one of ``CITYSCAPES_SPLITS[kind]``. The labels of the fine test split are not public: those of
            the download hold void only.
    """
    annotation = f"gt{kind.capitalize()}"
    return load_definition("cityscapes").spec(
        f"cityscapes_{kind}_sem_seg_{split}",
        f"cityscapes/leftImg8bit/{split}",
        f"cityscapes/{annotation}/{split}",
        image_suffixes=("_leftImg8bit.png",),
        label_suffixes=(f"_{annotation}_labelIds.png",),
        how_to_get="datasets/README.md says where to get Cityscapes and how its folders look.",
    )


def cityscapes_specs() -> list[DatasetSpec]:
    """All splits, fine and coarse."""
    return [cityscapes_spec(kind, split) for kind, splits in CITYSCAPES_SPLITS.items() for split in splits]
