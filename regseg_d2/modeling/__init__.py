"""Networks: heads, backbones and losses; importing this registers them."""

from regseg_d2.modeling.backbones import (
    build_dilated_resnet_backbone,
    build_mit_backbone,
    build_timm_backbone,
)
from regseg_d2.modeling.heads import AUGMENT, CONTEXT_MODULE, FUSION, PROJECTION, ContextHead

__all__ = [
    "AUGMENT",
    "CONTEXT_MODULE",
    "FUSION",
    "PROJECTION",
    "ContextHead",
    "build_dilated_resnet_backbone",
    "build_mit_backbone",
    "build_timm_backbone",
]
