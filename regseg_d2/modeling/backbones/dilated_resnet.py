"""Detectron2's ResNets, dilated to a given output stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.projects.deeplab.resnet import build_resnet_deeplab_backbone
from torch import nn

from regseg_d2.common.errors import check_key

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

    Stem, depth, multi-grid, norm and frozen stages are Detectron2's keys. ``CONTRACT_DILATION`` and
    ``RES5_DILATIONS`` change dilations in the ways of other code bases, see :func:`_set_dilations`.

    Raises:
        ConfigError: if stride, depth or dilations are not offered.
    """
    resnets = cfg.MODEL.RESNETS
    stride, depth = resnets.OUTPUT_STRIDE, resnets.DEPTH
    check_key("MODEL.RESNETS.OUTPUT_STRIDE", stride, stride in DILATIONS, f"one of {sorted(DILATIONS)}")
    known = f"one of {DEPTHS} (ResNet-18 and -34 come from MODEL.BACKBONE.NAME build_timm_backbone)"
    check_key("MODEL.RESNETS.DEPTH", depth, depth in DEPTHS, known)
    cfg = cfg.clone()
    cfg.defrost()
    dilations = DILATIONS[stride]
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = dilations
    resnet = build_resnet_deeplab_backbone(cfg, input_shape)
    stages = {name: getattr(resnet, name) for name in resnet.stage_names}
    _set_dilations(stages, resnets)
    return DilatedResNet(resnet.stem, list(stages.values()), out_features=list(resnets.OUT_FEATURES))


def _set_dilations(stages: dict[str, nn.Sequential], resnets: CfgNode) -> None:
    """Changes the dilations of res4 and res5 where ``MODEL.RESNETS`` asks for it.

    Detectron2 gives all blocks of a stage its dilation, times ``RES5_MULTI_GRID`` in res5. Where a stride
    is replaced by dilation, the first block's 3x3 convolution reads what has not been dilated yet: PSPNet's
    authors, mmsegmentation (``contract_dilation``) and timm give it the dilation of the stage before, half
    of its own. mmsegmentation's ``multi_grid`` is not a factor but the dilation itself.

    Raises:
        ConfigError: if ``RES5_DILATIONS`` is not one positive number a block.
    """
    if resnets.CONTRACT_DILATION:
        for name, dilation in zip(("res4", "res5"), DILATIONS[resnets.OUTPUT_STRIDE], strict=True):
            if name in stages and dilation > 1:
                factor = resnets.RES5_MULTI_GRID[0] if name == "res5" else 1
                _dilate(list(stages[name])[:1], [dilation // 2 * factor])
    dilations = list(resnets.RES5_DILATIONS)
    if not dilations or "res5" not in stages:
        return
    known = f"one dilation for each of the {len(stages['res5'])} blocks of res5, such as [1, 2, 4], or []"
    fine = len(dilations) == len(stages["res5"]) and min(dilations) >= 1
    check_key("MODEL.RESNETS.RES5_DILATIONS", dilations, fine, known)
    _dilate(list(stages["res5"]), dilations)


def _dilate(blocks: Sequence[Any], dilations: Sequence[int]) -> None:
    for block, dilation in zip(blocks, dilations, strict=True):
        for convolution in (block.conv2, getattr(block, "conv2_offset", None)):  # deformable blocks have both
            if convolution is not None:
                convolution.dilation = convolution.padding = (dilation, dilation)
