"""Keys of ContrastSeg."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def contrast_seg_defaults() -> CfgNode:
    """ContrastSeg (Wang et al., ICCV 2021), as published without a memory.

    The published settings with a memory are in ``configs/_base_/regularizers/contrast_seg_memory.yaml``.
    """
    # lambda of the paper; 0.1 without a memory, 1 with one (published code). Sane: 0.05 to 1. FEATURES
    # "auto": the classifier's input. WARMUP_ITERS is 5000 in the published Cityscapes settings.
    node = common_defaults(weight=0.1)
    # Channels of the embeddings, the output of the training-only projection. Sane: 64 to 512.
    node.CHANNELS = 256
    # tau: 0.1 without a memory, 0.07 with one (published code). 0.025 or more. Sane: 0.05 to 0.5.
    node.TEMPERATURE = 0.1
    # tau_base: the loss is scaled by tau / tau_base (published code). Equal to TEMPERATURE: no scaling.
    node.BASE_TEMPERATURE = 0.07
    # Anchors of the whole batch, over all processes, at most (published code: of each process); they
    # are shared out evenly among the classes of each image. Sane: 256 to 4096.
    node.MAX_ANCHORS = 1024
    # Anchors of a class of an image at most; 100 without a memory, 1 with one (published code).
    node.MAX_VIEWS = 100
    # A class with fewer pixels than this in an image, at feature size, gives no anchors there. The
    # published code takes MAX_VIEWS + 1, so that small objects never are anchors.
    node.MIN_PIXELS = 1
    # segmentation_aware: half of a class's anchors are misclassified pixels. random: drawn from all.
    node.ANCHORS = "segmentation_aware"
    # Contrast with stored samples of other images, instead of with the other anchors of the batch.
    node.MEMORY = False
    # T: samples kept of each class in each of two queues, one of region means, one of pixels. Memory:
    # 2 x classes x size x CHANNELS x 4 bytes on each process: 195 MB for 19 classes, 1.5 GB for 150.
    # Sane: 500 to 10000.
    node.MEMORY_SIZE = 5000
    # Type that samples are kept in: float32, or float16, which halves the memory.
    node.MEMORY_DTYPE = "float32"
    # V: pixels of each class of an image that go into the pixel queue. Sane: 1 to 50.
    node.PIXELS_PER_CLASS = 10
    # Positives and negatives of an anchor: all, or some of the hardest ones (semi_hard; not in the
    # published code).
    node.SAMPLING = "all"
    # semi_hard: share of an anchor's positives (least similar) and negatives (most similar) that are
    # drawn from; 0.1 in the paper. In (0, 1].
    node.HARD_FRACTION = 0.1
    # semi_hard: how many are drawn of these, without repeats; all, if there are no more.
    node.NUM_POSITIVES = 1024
    node.NUM_NEGATIVES = 2048
    return node
