"""Configs of full-size networks made thin: the same structure, a few channels wide, fast on a CPU."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from regseg_d2.modeling.backbones.timm_features import family
from tests.huggingface_networks import TINY, as_node

#: Side of the training crop.
CROP = 64
# Largest values of whole numbers in the sections of head and regularizers, by the end of the key.
_LIMITS = {
    "CHANNELS": 16,
    "CONVS_DIM": 16,
    "NUM_CODES": 4,
    "BANK_SIZE": 8,
    "MEMORY_SIZE": 8,
    "NUM_SAMPLES": 10,
    "MAX_ANCHORS": 64,
}
_BRANCHES = (4, 6, 8, 10)


def _hrnet_stage(branches: int) -> dict[str, Any]:
    block = "BOTTLENECK" if branches == 1 else "BASIC"
    return {
        "num_modules": 1,
        "num_branches": branches,
        "block_type": block,
        "num_blocks": [1] * branches,
        "num_channels": list(_BRANCHES[:branches]),
        "fuse_method": "SUM",
    }


# Arguments for timm that make the networks of a family thin. Swin's windows and the order of stages stay.
_TIMM_OPTIONS: dict[str, dict[str, Any]] = {
    "swin_transformer": {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2]},
    "convnext": {"dims": [8, 12, 16, 24], "depths": [1, 1, 2, 1]},
    "vision_transformer": {"embed_dim": 16, "num_heads": 2},
    "eva": {"embed_dim": 16, "num_heads": 2},
    "hrnet": {f"stage{branches}": _hrnet_stage(branches) for branches in (1, 2, 3, 4)},
}
# Families whose widths are no argument: their smallest network stands in for all.
_SMALLEST = {"efficientnet": "tf_efficientnet_lite0"}


def thin_config(cfg: CfgNode) -> CfgNode:
    """Returns a config of the same network a few channels wide, for steps on crops of ``CROP`` pixels.

    Number of classes, stages of the head, losses, dilations and all other keys stay. ResNets are 50 deep;
    EfficientNets become Lite0, the smallest of them, since timm does not take other widths for them; the
    other networks of timm, MiT and those of transformers keep their kind with narrow and few blocks.
    """
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.WEIGHTS = model.TIMM.PRETRAINED = ""
    model.RESNETS.DEPTH = 50
    model.RESNETS.RES2_OUT_CHANNELS = 16
    model.RESNETS.WIDTH_PER_GROUP = 4
    model.RESNETS.STEM_OUT_CHANNELS //= 8
    model.FPN.OUT_CHANNELS = 16
    model.MIT.EMBED_DIMS = [4, 8, 20, 32]
    model.MIT.NUM_LAYERS = [1, 1, 1, 1]
    kind = family(model.TIMM.NAME)
    model.TIMM.NAME = _SMALLEST.get(kind, model.TIMM.NAME)
    for option, value in _TIMM_OPTIONS.get(kind, {}).items():
        model.TIMM.OPTIONS[option] = CfgNode(value) if isinstance(value, dict) else value
    if model.HUGGINGFACE.NAME or model.HUGGINGFACE.MODEL_TYPE:
        model.HUGGINGFACE.MODEL_TYPE = huggingface_family(cfg)
        model.HUGGINGFACE.NAME = ""
        model.HUGGINGFACE.CONFIG = as_node(TINY[model.HUGGINGFACE.MODEL_TYPE])
    cfg.INPUT.CROP.SIZE = [CROP, CROP]
    # One position for each pixel of stride 8, as at full size.
    model.SEM_SEG_HEAD.CPNET_SIZE = [CROP // 8, CROP // 8]
    _limit(model.SEM_SEG_HEAD)
    _limit(model.REGULARIZERS)
    return cfg


def huggingface_family(cfg: CfgNode) -> str:
    """The family of a network of transformers; names of the hub have it in them."""
    node = cfg.MODEL.HUGGINGFACE
    return node.MODEL_TYPE or next(family for family in TINY if family in node.NAME)


def _limit(section: CfgNode) -> None:
    for key, value in section.items():
        if isinstance(value, CfgNode):
            _limit(value)
        for ending, limit in _LIMITS.items():
            if key.endswith(ending) and type(value) is int:
                section[key] = min(value, limit)
