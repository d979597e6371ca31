"""Preparation of the data sets that are used as they are published: there is only something to check."""

from __future__ import annotations

from regseg_d2.data.datasets.ade20k import ADE20K_SPLITS, ade20k_spec
from regseg_d2.data.datasets.camvid import CAMVID_SPLITS, camvid_spec
from regseg_d2.data.datasets.coco_stuff import (
    COCO_STUFF_164K_FOLDER,
    COCO_STUFF_164K_SPLITS,
    coco_stuff_164k_spec,
)
from regseg_d2.dataset_tools.preparation.preparation import Preparation

prepare_camvid = Preparation(
    "camvid",
    folder="camvid",
    specs={split: camvid_spec(split) for split in CAMVID_SPLITS},
    size=(360, 480),
)

prepare_ade20k = Preparation(
    "ade20k",
    folder="ADEChallengeData2016",
    specs={split: ade20k_spec(split) for split in ADE20K_SPLITS},
    archives={"ADEChallengeData2016.zip": "."},
)

prepare_coco_stuff_164k = Preparation(
    "coco_stuff_164k",
    folder=COCO_STUFF_164K_FOLDER,
    specs={split: coco_stuff_164k_spec(split) for split in COCO_STUFF_164K_SPLITS},
    archives={
        "train2017.zip": f"{COCO_STUFF_164K_FOLDER}/images",
        "val2017.zip": f"{COCO_STUFF_164K_FOLDER}/images",
        "stuffthingmaps_trainval2017.zip": f"{COCO_STUFF_164K_FOLDER}/annotations",
    },
)
