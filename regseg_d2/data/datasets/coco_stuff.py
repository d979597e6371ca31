"""COCO-Stuff: COCO with 80 things and 91 kinds of stuff, 10 000 images of 2014 or all 123 287 of 2017.

10K is used from the official folders ``images`` and ``imageLists`` and from index PNGs that
``datasets/prepare_coco_stuff_10k.py`` makes of the MATLAB files. 164K (so called with the images of the test
sets, whose labels are not public) is read as it is published.
"""

from __future__ import annotations

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec

COCO_STUFF_10K_SPLITS = ("train", "test")
COCO_STUFF_164K_SPLITS = ("train", "val")
# Below the folder of all data sets; the other paths are below these.
COCO_STUFF_10K_FOLDER = "coco_stuff10k"
COCO_STUFF_10K_LABELS = "labels"
COCO_STUFF_164K_FOLDER = "coco_stuff164k"


def coco_stuff_10k_spec(split: str) -> DatasetSpec:
    """Describes ``coco_stuff_10k_sem_seg_<split>``.

    Args:
        split: one of ``COCO_STUFF_10K_SPLITS``.
    """
    return load_definition("coco_stuff_10k").spec(
        f"coco_stuff_10k_sem_seg_{split}",
        f"{COCO_STUFF_10K_FOLDER}/images",
        f"{COCO_STUFF_10K_FOLDER}/{COCO_STUFF_10K_LABELS}",
        image_suffixes=(".jpg",),
        list_file=f"{COCO_STUFF_10K_FOLDER}/imageLists/{split}.txt",
        how_to_get="datasets/README.md says where to get COCO-Stuff 10K; datasets/prepare_coco_stuff_10k.py "
        "makes its labels.",
    )


def coco_stuff_164k_spec(split: str) -> DatasetSpec:
    """Describes ``coco_stuff_164k_sem_seg_<split>``.

    Args:
        split: one of ``COCO_STUFF_164K_SPLITS``.
    """
    return load_definition("coco_stuff_164k").spec(
        f"coco_stuff_164k_sem_seg_{split}",
        f"{COCO_STUFF_164K_FOLDER}/images/{split}2017",
        f"{COCO_STUFF_164K_FOLDER}/annotations/{split}2017",
        image_suffixes=(".jpg",),
        how_to_get="datasets/README.md says where to get COCO-Stuff 164K and how its folders look.",
    )


def coco_stuff_specs() -> list[DatasetSpec]:
    """All splits of both."""
    return [
        *(coco_stuff_10k_spec(split) for split in COCO_STUFF_10K_SPLITS),
        *(coco_stuff_164k_spec(split) for split in COCO_STUFF_164K_SPLITS),
    ]
