"""Keys of the input, the optimizer and the evaluation."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_input_config(cfg: CfgNode) -> None:
    """Adds the keys of ``INPUT``, ``DATALOADER`` and ``DATASETS``."""
    # Random scale factor of the training images: [smallest, largest] ...
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    # ... in steps of this size; 0 is any factor between.
    cfg.INPUT.SCALE_STEP = 0.0
    # Half of the samples are mirrored: horizontal, vertical or none.
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    # Colour jitter: largest relative change of brightness, contrast and saturation, and largest shift
    # of the hue as a share of the circle (0 to 0.5); 0 switches each off.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0
    cfg.INPUT.COLOR_JITTER.HUE = 0.0
    # Probability of each of the four changes, drawn one by one (SSD and mmsegmentation: 0.5).
    cfg.INPUT.COLOR_JITTER.PROBABILITY = 1.0
    # More augmentations: a list of {NAME: ..., argument: value}, Detectron2's T.Augmentations, those of
    # data/augmentations.py, and one's own (docs/configuration.md). They come before scale and crop; those
    # behind an entry CROP, after crop and colour jitter.
    cfg.INPUT.AUGMENTATIONS = []
    # Training samples also have one mask a class, "instances": what Mask2Former and MaskFormer of Detectron2
    # train on (docs/extending.md). Other networks read none.
    cfg.INPUT.CLASS_MASKS = False

    # Samples of every data set that are checked before the first step; 0 checks none.
    cfg.DATASETS.CHECK_SAMPLES = 8


def add_solver_config(cfg: CfgNode) -> None:
    """Adds the keys of ``SOLVER``."""
    # SGD, Adam or AdamW.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # Learning rate of the backbone = BASE_LR x this.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Learning rate of everything outside the backbone = BASE_LR x this (SegFormer: 10).
    cfg.SOLVER.HEAD_MULTIPLIER = 1.0
    # Each layer of the backbone learns with this x the rate of the layer behind it; 1.0 is off
    # (ConvNeXt: 0.9; BEiT: 0.65 to 0.95). Networks of timm, and others that tell their layers.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # What a layer is: "block", or "stage" (ConvNeXt), all blocks of one resolution.
    cfg.SOLVER.LAYER_DECAY_UNIT = "block"
    # Weight decay of norm layers; biases follow WEIGHT_DECAY_BIAS (None: as the weights).
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    # Parts of the names of parameters that do not decay, whatever the keys above say; * and ? as in
    # file names. Swin: relative_position_bias_table; ConvNeXt: gamma.
    cfg.SOLVER.NO_DECAY = []
    # IMS_PER_BATCH images (over all processes) make one optimizer step, in this many forward passes.
    # Batch norm, class centers and banks see one pass.
    cfg.SOLVER.ACCUM_STEPS = 1
    # fp16 (GPU only, with loss scaling) or bf16.
    cfg.SOLVER.AMP.DTYPE = "bf16"
    # A step whose losses or gradients are not finite is skipped and counted; after this many in a row
    # the run stops.
    cfg.SOLVER.MAX_NAN_STEPS = 10
    # Its batch is written to OUTPUT_DIR/nan_batches, so many times at most (for each process); 0 never.
    cfg.SOLVER.MAX_NAN_DUMPS = 5
    # Periodic checkpoints to keep besides the best and the last: 2 or more, so that there is one to fall
    # back to where the newest is damaged; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2
    # Exponential moving average of weights and running statistics, evaluated beside what is trained.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that stays in each step; 0.999 looks back about 1000 steps.
    cfg.SOLVER.EMA.DECAY = 0.999
    # torch.compile of backbone and head, regularizers outside; in training only.
    cfg.SOLVER.COMPILE = CfgNode()
    cfg.SOLVER.COMPILE.ENABLED = False
    # inductor is the one that makes steps faster; it needs a C++ compiler, and Triton on a GPU.
    cfg.SOLVER.COMPILE.BACKEND = "inductor"


def add_test_config(cfg: CfgNode) -> None:
    """Adds the keys of ``TEST``."""
    # Metric whose best checkpoint is kept as model_best.pth, of the first data set in DATASETS.TEST.
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    # Stop after this many evaluations in a row without a better BEST_METRIC; 0 never stops.
    cfg.TEST.PATIENCE = 0
    # Test images shown in TensorBoard, with prediction and label, at each evaluation; after the last one
    # the confusion matrix, too. 0 shows neither.
    cfg.TEST.NUM_IMAGES_SHOWN = 4
    # Pixels of each class in TensorBoard's embedding projector, after training, at the price of another
    # pass over the first test set; 5000 at most of all classes. 0 makes none.
    cfg.TEST.NUM_PIXELS_SHOWN = 50
    # Files of predictions to write, any of png (class indices), cityscapes and ade20k (what these servers
    # take), json (COCO's run-length format, large).
    cfg.TEST.PREDICTIONS = []
    # More metrics, by their names in METRIC (evaluation/metrics.py).
    cfg.TEST.METRICS = []
    # "whole" image, or "slide": overlapping windows, whose logits are averaged.
    cfg.TEST.MODE = "whole"
    cfg.TEST.SLIDE = CfgNode()
    # Height and width of a window in pixels; smaller where the image is smaller.
    cfg.TEST.SLIDE.CROP_SIZE = [512, 512]
    # Rows and columns from a window to the next, at most CROP_SIZE.
    cfg.TEST.SLIDE.STRIDE = [341, 341]
    # Windows in one forward pass: more is faster on a GPU and takes more memory.
    cfg.TEST.SLIDE.TILE_BATCH = 1
    # With TEST.AUG.ENABLED: the image is resized by each factor and, with TEST.AUG.FLIP, also mirrored;
    # probabilities are averaged. TEST.AUG.MIN_SIZES is Detectron2's for instances and not used.
    cfg.TEST.AUG.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    # "stride" pads images to the stride of the backbone, as training does; "none" does not and stretches
    # the logits over the image, as mmsegmentation does: for networks that take any size.
    cfg.TEST.PADDING = "stride"
    # Where logits become full size and labels: "" (where the model is), "cpu" or "cuda".
    cfg.TEST.LOGITS_DEVICE = ""
