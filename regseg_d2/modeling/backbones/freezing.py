"""Freezing the first stages of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import FeatureHookNet
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.backbones.timm_features import Feature, has_one_stride, stage_names

# HRNet's features all come from its last stage. Where its stages begin and end, as mmsegmentation freezes it.
_HRNET_ENDS = {"res2": "transition1", "res3": "transition2", "res4": "transition3", "res5": "stage4"}


def frozen_modules(
    network: nn.Module,
    freeze_at: int,
    known: Sequence[Mapping[str, Any]],
    features: Sequence[Feature],
) -> list[nn.Module]:
    """Takes the gradient from the first stages of a timm network.

    1 is the stem, all that comes before stage ``res2``; 2 is the stem and ``res2``; and so on, as in
    Detectron2. In a network whose blocks all have one stride a stage ends with the block of that name.

    ``freeze_at`` is the number of stages, 0 to 5; ``known`` are all features that timm knows of the network,
    ``features`` those that it puts out.

    Returns:
        The modules to keep in evaluation mode. Their parameters no longer require a gradient, nor do those
        before them that belong to the network as a whole, such as position embeddings.

    Raises:
        ConfigError: if the network has no such stage.
    """
    if freeze_at == 0:
        return []
    if not 0 < freeze_at <= 5 or isinstance(network, FeatureHookNet):
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; expected 0 to 5"
            + (", 0 for a network that is not a sequence of stages" if 0 < freeze_at <= 5 else "")
        )
    first = str(known[0]["module"])
    if hasattr(network, "transition1"):
        ends, first = _HRNET_ENDS, "layer1"
    elif has_one_stride(known):
        ends = {feature.name: feature.module for feature in features}
    else:
        modules = [str(info["module"]) for info in known]
        ends = dict(zip(stage_names(known), modules, strict=True))
        first = ends.get("res2", first)
    target = first if freeze_at == 1 else ends.get(f"res{freeze_at}", "")
    found = _find(network, target)
    if found is None:
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, and the network has no stage 'res{max(freeze_at, 2)}' "
            f"to freeze; its stages are {sorted(ends)}, of which those behind the deepest "
            "MODEL.TIMM.OUT_FEATURES do not exist"
        )
    return _freeze_up_to(network, found, inclusive=freeze_at > 1)


def _find(network: nn.Module, module: str) -> str | None:
    """Name of a module in a network of features, which timm flattens or wraps."""
    names = {name for name, _ in network.named_modules() if name}
    candidates = (module, module.replace(".", "_", 1), f"model.{module}")
    return next((candidate for candidate in candidates if candidate in names), None)


def _freeze_up_to(network: nn.Module, end: str, inclusive: bool) -> list[nn.Module]:
    modules = dict(network.named_modules())  # a module comes before its parts, and these in their order
    names = list(modules)
    inside = [i for i, name in enumerate(names) if name == end or name.startswith(f"{end}.")]
    cut = inside[-1] + 1 if inclusive else inside[0]
    # A container that goes on behind the cut is not frozen as a whole.
    containers: set[str] = set()
    for name in names[cut:]:
        while name:
            name = name.rpartition(".")[0]
            containers.add(name)
    for name in names[:cut]:
        for parameter in modules[name].parameters(recurse=False):
            parameter.requires_grad_(False)
    return [modules[name] for name in names[:cut] if name not in containers]
