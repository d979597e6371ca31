"""Preparation of the data sets that are used as they are published: there is only something to check."""

from regseg_d2.dataset_tools.preparation.preparation import Preparation

prepare_camvid = Preparation("camvid", folder="camvid", size=(360, 480))

prepare_ade20k = Preparation(
    "ade20k", folder="ADEChallengeData2016", archives={"ADEChallengeData2016.zip": "."}
)

prepare_coco_stuff_164k = Preparation(
    "coco_stuff_164k",
    folder="coco_stuff164k",
    archives={
        "train2017.zip": "coco_stuff164k/images",
        "val2017.zip": "coco_stuff164k/images",
        "stuffthingmaps_trainval2017.zip": "coco_stuff164k/annotations",
    },
)
