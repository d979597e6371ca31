"""Checkpoints of timm, in a timm network that gives its features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import timm
from detectron2.config import CfgNode
from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.network import Network
from regseg_d2.weights.sources import IMAGENET, ImageValues, Renamed, Source

#: Where the network lies in the backbone.
_NETWORK = "network."
#: Share of the network's tensors that a file must name to be taken for a checkpoint of it.
_TELLING_SHARE = 0.5


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames the tensors of a whole network to those of the one that gives features.

    Raises:
        CheckpointError: if the backbone is none of timm's.
    """
    if not network.backbone_kind.startswith("timm_"):
        raise CheckpointError(
            f"Checkpoints of timm need MODEL.BACKBONE.NAME build_timm_backbone; it is "
            f"{network.cfg.MODEL.BACKBONE.NAME!r}."
        )
    ours = _our_names(network)
    renamed: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    for name, value in state.items():
        place = ours.get(_spelling(name))
        if place is None:
            unknown[name] = value
        else:
            renamed[place] = value
    return renamed, unknown


def image_values(state: Mapping[str, Tensor], cfg: CfgNode) -> ImageValues:
    """What timm's weights of MODEL.TIMM read, its default ones without a tag; else ImageNet's values."""
    name = cfg.MODEL.TIMM.NAME
    tagged = f"{name}.{cfg.MODEL.TIMM.PRETRAINED}"
    pretrained = timm.get_pretrained_cfg(tagged if timm.is_model_pretrained(tagged) else name)
    if pretrained is None:
        return IMAGENET
    mean, std = (tuple(255 * x for x in values) for values in (pretrained.mean, pretrained.std))
    return ImageValues("RGB", mean, std)


def _our_names(network: Network) -> dict[str, str]:
    prefix = f"{network.backbone_prefix}{_NETWORK}"
    return {_spelling(name.removeprefix(prefix)): name for name in network.shapes if name.startswith(prefix)}


def _spelling(name: str) -> str:
    """One spelling of both: networks that give features say ``stages_0``, or ``model.`` first."""
    return name.removeprefix("model.").replace("_", ".")


def _recognises(names: Iterable[str], network: Network) -> bool:
    if not network.backbone_kind.startswith("timm_"):
        return False
    ours = _our_names(network)
    found = {_spelling(name) for name in names} & set(ours)
    return len(found) >= _TELLING_SHARE * len(ours)


SOURCE = Source("timm", _recognises, rename, image_values)
