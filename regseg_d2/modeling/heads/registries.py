"""Registries of the stages of a head. A stage is called with ``(cfg, in_channels)``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from regseg_d2.errors import ConfigError
from regseg_d2.suggestions import did_you_mean

CONTEXT_MODULE = Registry("CONTEXT_MODULE")
CONTEXT_MODULE.__doc__ = """
Modules ``x (N, C, h, w) -> (features (N, D, h, w), side_logits)`` with an attribute ``out_channels``
D. Side logits are a dict of extra predictions ``(N, K, h', w')`` by name, in training.
"""

AUGMENT = Registry("AUGMENT")
AUGMENT.__doc__ = """
Stages between context and projection that stay at inference: modules with the interface of a context
module.
"""

PROJECTION = Registry("PROJECTION")
PROJECTION.__doc__ = """
Last blocks before the classifier: modules ``(N, C, h, w) -> (N, D, h, w)`` with ``out_channels`` D.
"""


def build_stage(registry: Registry, key: str, name: str, cfg: CfgNode, in_channels: int) -> nn.Module:
    """Builds a stage by name.

    Args:
        registry: where to look.
        key: config key that the name comes from, for the error.
        name: registered name.
        cfg: a full config.
        in_channels: channels of the stage's input.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in registry:
        known = sorted(known_name for known_name, _ in registry)
        raise ConfigError(f"{key}: unknown name {name!r}{did_you_mean(name, known)}; known are {known}")
    return registry.get(name)(cfg, in_channels)
