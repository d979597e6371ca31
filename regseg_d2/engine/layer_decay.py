"""Layer-wise learning rates: the deeper a layer of the backbone, the faster it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.backbones.timm_private import group_with_matcher

# What a layer is: a block of the network, or all blocks of the same resolution.
UNITS = ("block", "stage")
# A name that no pattern of a network fits: it stands for all that comes behind the backbone.
_BEHIND = "<behind the backbone>"


def layer_scales(backbone: nn.Module, decay: float, unit: str) -> dict[str, float]:
    """Returns the learning rate factor of each parameter of a backbone.

    The factor is ``decay ** (L - l)`` in layer l of L (Bao et al., "BEiT", ICLR 2022, appendix; Clark et
    al., "ELECTRA", ICLR 2020): the stem is layer 0, and what is behind the last layer, the heads first of
    all, has the factor 1. Parts of the backbone that belong to no layer count as behind it.

    Which parameters make a layer is said by the network's ``group_matcher``, as timm's networks have it:
    a dict of regular expressions, read by timm's own ``group_with_matcher``. (timm's
    ``param_groups_layer_decay`` does not do here: a ``features_only`` network mostly has no
    ``group_matcher``, and then it puts all parameters into one layer and only warns.)

    Args:
        backbone: a timm network, or a module that contains one or another network with a
            ``group_matcher(coarse)``.
        decay: factor from one layer to the one before it.
        unit: ``"block"``, or ``"stage"`` for one factor for all blocks of a stage. Networks without
            stages, such as a plain vision transformer, have blocks in both.

    Returns:
        ``{name of a parameter in the backbone: factor}``.

    Raises:
        ConfigError: decay or unit are out of their range, or the network does not tell its layers.
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"SOLVER.LAYER_DECAY is {decay}; expected a number above 0 and up to 1 (off)")
    if unit not in UNITS:
        raise ConfigError(f"SOLVER.LAYER_DECAY_UNIT is {unit!r}; expected one of {UNITS}")
    prefix, matcher, full_name = _find_layers(backbone, decay, coarse=unit == "stage")
    names = {
        full_name(name.removeprefix(prefix)): name
        for name, _ in backbone.named_parameters()
        if name.startswith(prefix)
    }
    # With a name that fits nothing among them, the last layer is what fits nothing.
    layers = group_with_matcher([(name, None) for name in [*names, _BEHIND]], matcher, reverse=True)
    last = layers[_BEHIND]
    if last == 0:
        raise _no_layers(backbone, decay)
    scales = {name: 1.0 for name, _ in backbone.named_parameters()}
    scales.update({name: decay ** (last - layers[full]) for full, name in names.items()})
    return scales


def _find_layers(
    backbone: nn.Module, decay: float, coarse: bool
) -> tuple[str, dict[str, Any], Callable[[str], str]]:
    """Finds the network inside a backbone that says what its layers are.

    Returns:
        The prefix of its parameters' names, its matcher, and what maps a name behind the prefix to the
        name that the matcher knows it by.
    """
    for path, module in backbone.named_modules():
        prefix = f"{path}." if path else ""
        if hasattr(module, "group_matcher"):
            return prefix, module.group_matcher(coarse=coarse), lambda name: name
        if any(hasattr(child, "group_matcher") for child in module.children()):
            continue  # timm's FeatureGetterNet: the network is below it, under its own names
        architecture = (getattr(module, "pretrained_cfg", None) or {}).get("architecture", "")
        if timm.is_model(architecture):
            with torch.device("meta"):
                full = timm.create_model(architecture, pretrained=False)
            if hasattr(full, "group_matcher"):
                return prefix, full.group_matcher(coarse=coarse), _unflatten(full)
    raise _no_layers(backbone, decay)


def _unflatten(full: nn.Module) -> Callable[[str], str]:
    """Undoes what timm's ``FeatureListNet`` does to names: "stages_0.blocks" for "stages.0.blocks"."""

    def children() -> Iterator[tuple[str, str]]:
        for name, module in full.named_children():
            if isinstance(module, nn.Sequential):
                yield from ((f"{name}_{child}", f"{name}.{child}") for child, _ in module.named_children())

    full_names = dict(children())

    def rename(name: str) -> str:
        first, dot, rest = name.partition(".")
        return full_names.get(first, first) + dot + rest

    return rename


def _no_layers(backbone: nn.Module, decay: float) -> ConfigError:
    return ConfigError(
        f"SOLVER.LAYER_DECAY is {decay}, and the backbone {type(backbone).__name__} does not say which "
        "layers it has; expected a network of timm, or one with a method group_matcher(coarse) like theirs. "
        "SOLVER.LAYER_DECAY 1.0 is off"
    )
