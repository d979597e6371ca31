"""Small configs, batches and heads that several test folders share."""

import torch
from detectron2.config import CfgNode

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.config import get_regseg_cfg
from regseg_d2.segmentor.diagnostics import EventStorageObserver

NUM_CLASSES = 5
IGNORE = 255

# Every head that a regularizer must work on, and the keys that make it small.
HEADS = {
    "SemSegFPN": {"NAME": "SemSegFPNHead", "IN_FEATURES": ["res3", "res4"], "COMMON_STRIDE": 8},
    "DeepLabV3": {"NAME": "DeepLabV3Head", "IN_FEATURES": ["res4"], "COMMON_STRIDE": 16},
    "DeepLabV3Plus": {"NAME": "DeepLabV3PlusHead", "IN_FEATURES": ["res2", "res4"], "COMMON_STRIDE": 4},
    "FCN": {"NAME": "ContextHead", "CONTEXT": "FCN", "IN_FEATURES": ["res4"]},
    "ASPP": {"NAME": "ContextHead", "CONTEXT": "ASPP", "IN_FEATURES": ["res2", "res4"]},
    "FCN-linear": {
        "NAME": "ContextHead",
        "CONTEXT": "FCN",
        "IN_FEATURES": ["res4"],
        "PROJECTION": "LinearConvBlock",
        "PROJECTION_KERNEL_SIZE": 1,
        "AUX.IN_FEATURE": "res3",
    },
}


def small_cfg(head: str = "FCN", regularizers=(), **overrides) -> CfgNode:
    """A config of a thin network: timm's resnet10t up to stride 16 and a head of 16 channels.

    Overrides are dotted keys with ``__`` for the dots, below ``MODEL`` unless they name another node.
    """
    cfg = get_regseg_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "resnet10t"
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4"]
    node = cfg.MODEL.SEM_SEG_HEAD
    node.NUM_CLASSES = NUM_CLASSES
    node.IGNORE_VALUE = IGNORE
    node.CONVS_DIM = node.CONTEXT_CHANNELS = node.ASPP_CHANNELS = 16
    node.AUX.CHANNELS = 8
    node.PROJECT_CHANNELS = [8]
    node.LOSS_TYPE = "cross_entropy"
    node.NORM = "BN"
    cfg.INPUT.CROP.SIZE = [64, 64]
    cfg.MODEL.REGULARIZERS.NAMES = list(regularizers)
    for key, value in HEADS[head].items():
        cfg.merge_from_list([f"MODEL.SEM_SEG_HEAD.{key}", value])
    for key, value in overrides.items():
        key = key.replace("__", ".")
        top = key.split(".")[0]
        cfg.merge_from_list([key if top in cfg else f"MODEL.{key}", value])
    return cfg


def observed(regularizer, period: int = 1):
    """The regularizer, which puts its diagnostics into Detectron2's EventStorage from now on."""
    regularizer.observer = EventStorageObserver(period)
    return regularizer


def small_batch(batch_size: int = 2, size=(64, 64), labels: str = "blocks", seed: int = 0) -> list[dict]:
    """A batch of random images with labels: blocks, void, one_class, class_zero."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index in range(batch_size):
        image = torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8)
        blocks = torch.randint(0, NUM_CLASSES, (4, 4), generator=generator)
        target = blocks.repeat_interleave(-(-size[0] // 4), 0).repeat_interleave(-(-size[1] // 4), 1)
        target = target[: size[0], : size[1]].clone()
        target[:8, : 8 * (index + 1)] = IGNORE
        if labels == "void":
            target.fill_(IGNORE)
        elif labels == "one_class":
            target.fill_(2)
        elif labels == "class_zero":
            target.fill_(0)
        elif labels != "blocks":
            raise ValueError(labels)
        batch.append({"image": image, "sem_seg": target, "file_name": f"{seed}_{index}.png"})
    return batch
