"""From a config to its network, with errors that name the key."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling import build_model as build_with_detectron2
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import registered
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.segmentor.meta_architecture import RegularizationMixin
from regseg_d2.segmentor.variants import find_variant


def build_model(cfg: CfgNode) -> nn.Module:
    """Builds the network of a config, on its device.

    Raises:
        ConfigError: a name is in none of Detectron2's registries, a part cannot be built, or the
            meta-architecture builds none of the regularizers that the config names.
    """
    find_variant(cfg.MODEL.META_ARCHITECTURE)
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        registered(registry, name, key)
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), RegularizationMixin):
        cfg = resolve_auto_norm(cfg)  # the mixin does it itself, and makes the norm exact
    model = build_with_detectron2(cfg)
    names = list(cfg.MODEL.REGULARIZERS.NAMES)
    if names and not hasattr(model, "regularizers"):
        raise ConfigError(
            f"MODEL.REGULARIZERS.NAMES is {names}, and MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE!r} builds no regularizers: it would train without them. Take "
            f"'Regularized{cfg.MODEL.META_ARCHITECTURE}' (docs/extending.md)."
        )
    return model
