"""CamVid: 701 street scenes of 360x480 pixels, in the split and the 11 classes of SegNet."""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

CAMVID_SPLITS = ("train", "val", "test")


def camvid_spec(split: str) -> DatasetSpec:
    """Describes ``camvid_<split>``.

    Args:
        split: one of ``CAMVID_SPLITS``.

    Returns:
        The description, whose folders are ``camvid/<split>`` and ``camvid/<split>annot``.
    """
    return load_definition("camvid").spec(
        f"camvid_{split}",
        f"camvid/{split}",
        f"camvid/{split}annot",
        how_to_get="datasets/README.md says where to get CamVid; datasets/prepare_camvid.py checks a copy.",
    )


def camvid_specs() -> list[DatasetSpec]:
    """All splits."""
    return [camvid_spec(split) for split in CAMVID_SPLITS]
