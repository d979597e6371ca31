"""Backbones, in Detectron2's registry."""

from regseg_d2.modeling.backbones.dilated_resnet import build_dilated_resnet_backbone
from regseg_d2.modeling.backbones.mit import build_mit_backbone
from regseg_d2.modeling.backbones.timm import build_timm_backbone

__all__ = ["build_mit_backbone", "build_dilated_resnet_backbone", "build_timm_backbone"]
