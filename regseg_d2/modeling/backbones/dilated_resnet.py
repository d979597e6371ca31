"""Detectron2's ResNets, dilated to a given output stride."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.projects.deeplab.resnet import build_resnet_deeplab_backbone

from regseg_d2.errors import ConfigError

# Output stride -> dilations of res4 and res5.
DILATIONS = {32: (1, 1), 16: (1, 2), 8: (2, 4)}
DEPTHS = (50, 101, 152)


class DilatedResNet(ResNet):
    """A ResNet that asks for inputs padded to a multiple of its output stride."""

    @property
    def size_divisibility(self) -> int:
        """Largest stride: padded to it, features and image cover the same area exactly."""
        return max(self._out_feature_strides.values())


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Builds a ResNet-50, -101 or -152 of stride ``MODEL.RESNETS.OUTPUT_STRIDE``.

    Stem, depth, multi-grid, norm and frozen stages are Detectron2's keys.

    Args:
        cfg: a full config.
        input_shape: channels of the image.

    Returns:
        A backbone with the features of ``MODEL.RESNETS.OUT_FEATURES``.

    Raises:
        ConfigError: if stride or depth is not offered.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.OUTPUT_STRIDE not in DILATIONS:
        raise ConfigError(
            f"MODEL.RESNETS.OUTPUT_STRIDE is {resnets.OUTPUT_STRIDE}; expected one of {sorted(DILATIONS)}"
        )
    if resnets.DEPTH not in DEPTHS:
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; expected one of {DEPTHS} "
            "(ResNet-18 and -34 come from MODEL.BACKBONE.NAME build_timm_backbone)"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = DILATIONS[resnets.OUTPUT_STRIDE]
    resnet = build_resnet_deeplab_backbone(cfg, input_shape)
    stages = [getattr(resnet, name) for name in resnet.stage_names]
    return DilatedResNet(resnet.stem, stages, out_features=list(resnets.OUT_FEATURES))
