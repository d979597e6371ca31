"""Regularized variants of meta-architectures that others wrote."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from torch import nn

from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.modeling.process_batch_norm import make_exact
from regseg_d2.segmentor.meta_architecture import RegularizationMixin
from regseg_d2.segmentor.regularizers import build_regularizers

PREFIX = "Regularized"


def regularized(base: type[nn.Module]) -> type[nn.Module]:
    """Makes, and registers, the variant of a meta-architecture that regularizers listen to.

    Args:
        base: a meta-architecture, with Detectron2's ``@configurable`` or a constructor that takes a config.

    Returns:
        The class; in ``META_ARCH_REGISTRY`` it is ``Regularized<name of base>``.
    """
    name = f"{PREFIX}{base.__name__}"
    if name in META_ARCH_REGISTRY:
        return META_ARCH_REGISTRY.get(name)
    body: dict[str, Any] = {"__doc__": f"{base.__name__} with regularizers.", "__module__": __name__}
    if not hasattr(base, "from_config"):
        body["__init__"] = _init_from_config
    variant = type(name, (RegularizationMixin, base), body)
    META_ARCH_REGISTRY.register(variant)
    globals()[name] = variant  # where pickle looks for it
    return variant


def _init_from_config(self: Any, cfg: CfgNode) -> None:
    """Constructor of a variant whose base takes a config: the network first, then its regularizers."""
    is_auto, cfg = cfg.MODEL.NORM == "auto", resolve_auto_norm(cfg)
    super(RegularizationMixin, self).__init__(cfg)
    if cfg.MODEL.CHANNELS_LAST:
        self.to(memory_format=torch.channels_last)
    self.add_regularizers(build_regularizers(cfg, self), **self.regularization_settings(cfg))
    if is_auto and cfg.MODEL.NORM == "naiveSyncBN":
        make_exact(self)


def find_variant(name: str) -> None:
    """Registers ``Regularized<X>`` where X is a registered meta-architecture and the name is not."""
    base = name.removeprefix(PREFIX)
    if name not in META_ARCH_REGISTRY and base != name and base in META_ARCH_REGISTRY:
        regularized(META_ARCH_REGISTRY.get(base))


regularized(PanopticFPN)
