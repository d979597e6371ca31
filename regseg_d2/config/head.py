"""Keys of the head: its stages, losses and auxiliary head."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.contexts import add_context_config


def add_head_config(cfg: CfgNode) -> None:
    """Adds the keys of ``MODEL.SEM_SEG_HEAD``."""
    head = cfg.MODEL.SEM_SEG_HEAD
    # True makes the 3x3 block of each low-level skip separable, as mmsegmentation's DeepLabV3+ does.
    head.SKIP_SEPARABLE = False
    # Stage that makes one feature of all IN_FEATURES, at the smallest stride among them, for the context
    # module, by its name in FUSION. "" is none.
    head.FUSION = ""
    # Context module, by its name in CONTEXT_MODULE.
    head.CONTEXT = "ASPP"
    # Channels that the context module puts out. (ASPP_DILATIONS and ASPP_DROPOUT are Detectron2's.)
    head.CONTEXT_CHANNELS = 256
    add_context_config(head)
    # Stage behind the context that stays at inference, by its name in AUGMENT: MDRL (its keys are those of
    # MODEL.REGULARIZERS.MDRL, and that regularizer has to be among the NAMES). "" is none.
    head.AUGMENT = ""
    # Join what the context module read to what it put out (the FCN, CCNet and non-local heads of PSPNet's
    # authors and of mmsegmentation).
    head.CONCAT_INPUT = False
    # Last convolution block before the classifier, by its name in PROJECTION. ConvBlock: convolution,
    # norm, ReLU. SeparableConvBlock: a separable 3x3 one (mmsegmentation's DeepLabV3+). LinearConvBlock:
    # CAR's linear 1x1 convolution before a ConvBlock. Norm: a norm alone, which makes the head linear
    # (DINOv2's); NormLinear: CAR's linear 1x1 convolution behind it. "" is none.
    # CONVS_DIM is the number of channels that it puts out, and that the classifier reads; those of Norm are
    # the input's, those of NormLinear LINEAR_CHANNELS.
    head.PROJECTION = "ConvBlock"
    # 3 as usual; 1 is the paper's column "A" (CAR, section 4.2.1).
    head.PROJECTION_KERNEL_SIZE = 3
    # Channels of the linear convolution; 0 is min(input channels, 512) as in CAR.
    head.LINEAR_CHANNELS = 0
    # Dropout probability on the classifier's input.
    head.DROPOUT = 0.1
    # One weight a class, in class order; empty is no weighting.
    head.CLASS_WEIGHTS = []
    # Weights from the frequencies of the classes instead: enet, median_frequency, inverse or
    # effective_number (docs/imbalance.md); "" is CLASS_WEIGHTS. The frequencies: DATASETS.FREQUENCIES.
    head.CLASS_WEIGHTING = ""
    # effective_number: beta, 0 or more (no weighting) and less than 1 (one over the number of images).
    head.CLASS_WEIGHTING_BETA = 0.999
    # OHEM keeps the pixels whose true class has a probability below this ...
    head.OHEM_THRESHOLD = 0.7
    # ... and at least this many pixels for each image of a process's batch, the hardest of all its images
    # together. 100000 is RCH's, RegionContrast's and mmsegmentation's for crops of Cityscapes, a fifth of
    # 512x1024; take a fifth of smaller crops.
    head.OHEM_MIN_KEPT = 100000
    # What that number is for: an image (mmsegmentation, RCH's published code), or all images of a process
    # (process; RegionContrast's published code).
    head.OHEM_MIN_KEPT_PER = "image"

    # An FCN head on an earlier feature whose loss helps the backbone in training.
    head.AUX = CfgNode()
    # Backbone feature that it reads, or "fused", the feature that the context module reads; "" is no
    # auxiliary head. OCR's coarse predictions are those of this head.
    head.AUX.IN_FEATURE = ""
    # 0 is as many as it reads.
    head.AUX.CHANNELS = 256
    head.AUX.NUM_CONVS = 1
    head.AUX.KERNEL_SIZE = 3
    head.AUX.DROPOUT = 0.1
    head.AUX.LOSS_WEIGHT = 0.4
