"""ImageNet weights of the backbones: what ``MODEL.WEIGHTS: auto`` stands for."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.common.errors import ConfigError
from regseg_d2.weights.network import RESNET_BUILDERS

_OPENMMLAB = "https://download.openmmlab.com"
_SEGFORMER = f"{_OPENMMLAB}/mmsegmentation/v0.5/pretrain/segformer"

#: By MODEL.RESNETS.DEPTH, STEM_TYPE and STEM_OUT_CHANNELS.
RESNETS: dict[tuple[int, str, int], str] = {
    # Detectron2's, for its DeepLabs.
    (50, "deeplab", 128): "detectron2://DeepLab/R-52.pkl",
    (101, "deeplab", 128): "detectron2://DeepLab/R-103.pkl",
    # mmsegmentation's resnet50_v1c and resnet101_v1c.
    (50, "deeplab", 64): f"{_OPENMMLAB}/pretrain/third_party/resnet50_v1c-2cccc1ad.pth",
    (101, "deeplab", 64): f"{_OPENMMLAB}/pretrain/third_party/resnet101_v1c-e67eebb6.pth",
    # One 7x7 convolution in the stem.
    (50, "basic", 64): "torchvision:resnet50.IMAGENET1K_V1",
    (101, "basic", 64): "torchvision:resnet101.IMAGENET1K_V1",
    (152, "basic", 64): "torchvision:resnet152.IMAGENET1K_V1",
}
#: By MODEL.MIT.DEPTH: the authors' weights in mmsegmentation's names.
MIT: dict[str, str] = {
    "b0": f"{_SEGFORMER}/mit_b0_20220624-7e0fe6dd.pth",
    "b1": f"{_SEGFORMER}/mit_b1_20220624-02e5a6a1.pth",
    "b2": f"{_SEGFORMER}/mit_b2_20220624-66e8bf70.pth",
    "b3": f"{_SEGFORMER}/mit_b3_20220624-13b1141c.pth",
    "b4": f"{_SEGFORMER}/mit_b4_20220624-d588d980.pth",
    "b5": f"{_SEGFORMER}/mit_b5_20220624-658746d9.pth",
}


def imagenet_weights(cfg: CfgNode) -> str:
    """Names the ImageNet weights of a config's backbone.

    Raises:
        ConfigError: none are known.
    """
    model, name = cfg.MODEL, cfg.MODEL.BACKBONE.NAME
    if name == "build_timm_backbone":
        raise ConfigError(
            "MODEL.WEIGHTS is auto, and the backbone is one of timm's: give MODEL.TIMM.PRETRAINED auto, and "
            "MODEL.WEIGHTS ''"
        )
    if name == "build_mit_backbone" and model.MIT.DEPTH in MIT:
        return MIT[model.MIT.DEPTH]
    resnets = model.RESNETS
    kind = (resnets.DEPTH, resnets.STEM_TYPE, resnets.STEM_OUT_CHANNELS)
    if name in RESNET_BUILDERS and kind in RESNETS and not resnets.STRIDE_IN_1X1:
        return RESNETS[kind]
    known = "; ".join(f"{d}, {stem}, {channels}" for d, stem, channels in RESNETS)
    raise ConfigError(
        f"MODEL.WEIGHTS is auto, and no ImageNet weights are known of MODEL.BACKBONE.NAME {name} with "
        f"MODEL.RESNETS.DEPTH, STEM_TYPE, STEM_OUT_CHANNELS {', '.join(map(str, kind))}, STRIDE_IN_1X1 "
        f"{resnets.STRIDE_IN_1X1}; they are of {known} (STRIDE_IN_1X1 False), and of build_mit_backbone "
        f"{', '.join(MIT)}. Give a file or another name, or '' for random weights."
    )
