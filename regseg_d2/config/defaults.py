"""Where this package's defaults of Detectron2's keys are not Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def set_defaults(cfg: CfgNode) -> None:
    """Sets keys of Detectron2 and its DeepLab project to what semantic segmentation starts from here."""
    cfg.MODEL.META_ARCHITECTURE = "RegularizedSegmentor"
    # What MODEL.NORM says.
    cfg.MODEL.RESNETS.NORM = "auto"
    cfg.MODEL.FPN.NORM = "auto"
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    # build_dilated_resnet_backbone (ResNet 50/101/152), build_mit_backbone or build_timm_backbone.
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    # Stages that are not trained, norms included: 1 is the stem, 2 the stem and res2, and so on.
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # The v1c stem (three 3x3 convolutions) of the papers' ResNets.
    cfg.MODEL.RESNETS.STEM_TYPE = "deeplab"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 128
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False

    # ContextHead, or one of Detectron2's: SemSegFPNHead, DeepLabV3Head, DeepLabV3PlusHead.
    cfg.MODEL.SEM_SEG_HEAD.NAME = "ContextHead"
    # Without FUSION the context module reads the feature of the largest stride; features of smaller stride
    # are low-level skips in the manner of DeepLabV3+, PROJECT_CHANNELS wide, one number a skip.
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    # ContextHead: cross_entropy or ohem. (Detectron2's DeepLab heads know cross_entropy and
    # hard_pixel_mining.)
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"

    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    # Height and width of the training crop in pixels; smaller images are padded (labels with the
    # ignore value).
    cfg.INPUT.CROP.SIZE = [512, 512]
    # A crop in which one class covers more than this share of the valid pixels is drawn again, up to
    # 10 times; 1.0 takes the first.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Shorter side of the test images; 0 keeps their own size.
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MAX_SIZE_TEST = 4096

    cfg.DATALOADER.NUM_WORKERS = 2

    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
