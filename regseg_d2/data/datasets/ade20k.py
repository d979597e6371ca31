"""ADE20K with 150 classes, from the official folder ``ADEChallengeData2016``; nothing has to be prepared."""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

# Our name of a split and the name of its folders.
ADE20K_SPLITS = {"train": "training", "val": "validation"}


def ade20k_spec(split: str) -> DatasetSpec:
    """Describes ``ade20k_sem_seg_<split>``.

    Args:
        split: "train" or "val".
    """
    folder = ADE20K_SPLITS[split]
    return load_definition("ade20k").spec(
        f"ade20k_sem_seg_{split}",
        f"ADEChallengeData2016/images/{folder}",
        f"ADEChallengeData2016/annotations/{folder}",
        image_suffixes=(".jpg",),
        how_to_get="datasets/README.md says where to get ADE20K; datasets/prepare_ade20k.py checks a copy.",
    )


def ade20k_specs() -> list[DatasetSpec]:
    """Both splits."""
    return [ade20k_spec(split) for split in ADE20K_SPLITS]
