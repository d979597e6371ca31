"""CamVid: 701 street scenes of 360x480 pixels in 11 classes.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 30(2), 2009; in the split and the 11 classes of SegNet
(Badrinarayanan et al., TPAMI 2017).
"""

from __future__ import annotations

from regseg_d2.data.datasets.spec import DatasetSpec

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign/symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
CAMVID_SPLITS = ("train", "val", "test")
_VOID = 11


def camvid_spec(split: str) -> DatasetSpec:
    """Describes ``camvid_<split>``.

    Args:
        split: one of ``CAMVID_SPLITS``.

    Returns:
        The description, whose folders are ``camvid/<split>`` and ``camvid/<split>annot``.
    """
    return DatasetSpec(
        name=f"camvid_{split}",
        image_root=f"camvid/{split}",
        label_root=f"camvid/{split}annot",
        classes=CAMVID_CLASSES,
        colors=CAMVID_COLORS,
        label_map={**{value: value for value in range(len(CAMVID_CLASSES))}, _VOID: 255},
        how_to_get="datasets/README.md says where to get CamVid; datasets/prepare_camvid.py checks a copy.",
    )


def register_camvid() -> None:
    """Registers ``camvid_train``, ``camvid_val`` and ``camvid_test``."""
    for split in CAMVID_SPLITS:
        camvid_spec(split).register()
