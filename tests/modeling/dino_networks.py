"""Thin networks of the kinds that DINOv2 and DINOv3 are."""

from regseg_d2.modeling.backbones.timm import TimmBackbone
from tests.helpers import small_cfg

#: Name by kind, side of a patch, tokens before the patches.
KINDS = {
    "dinov2": ("vit_small_patch14_dinov2", 14, 1),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", 14, 5),
    "dinov3": ("vit_small_patch16_dinov3", 16, 5),
}
FOUR = ["res2", "res3", "res4", "res5"]


def options(kind, **more):
    """Arguments for timm; position embeddings are those of 4 x 4 patches where there are any."""
    size = {} if kind == "dinov3" else {"img_size": 56}
    return {"embed_dim": 32, "depth": 4, "num_heads": 2, **size, **more}


def build_dino(kind, out_features=FOUR, **arguments):
    """A backbone of random weights."""
    given = {"options": options(kind), "output_stride": 32, "out_norm": "final", **arguments}
    return TimmBackbone(name=KINDS[kind][0], out_features=out_features, **given)


def dino_cfg(kind, head, regularizers=(), depth=2, **overrides):
    """A config with a ``"linear"`` head on the last block, on ``"four"`` blocks, or with ``"upernet"``."""
    cfg = small_cfg("FCN", regularizers, **overrides)
    timm, node = cfg.MODEL.TIMM, cfg.MODEL.SEM_SEG_HEAD
    timm.NAME, timm.OUT_NORM = KINDS[kind][0], "final"
    timm.OPTIONS.update(options(kind, depth=depth if head == "linear" else 4))
    node.FCN_NUM_CONVS = 0
    timm.OUT_FEATURES = node.IN_FEATURES = ["res5"] if head == "linear" else FOUR
    if head == "upernet":
        timm.RESCALE = True
        node.FUSION, node.PPM_POOL_SIZES = "UPerFPN", [1, 2]
        return cfg
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    node.FUSION = "Concat" if head == "four" else ""
    node.PROJECTION, node.DROPOUT = "Norm", 0.0
    return cfg
