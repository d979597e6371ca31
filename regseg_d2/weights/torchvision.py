"""Checkpoints of torchvision: ResNets, and their FCN and DeepLabV3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights import timm_names
from regseg_d2.weights.mmseg_backbones import DILATED_RESNET_RULES
from regseg_d2.weights.network import HEAD, Network
from regseg_d2.weights.renaming import Rule, conv_and_norm, prefixed
from regseg_d2.weights.sources import IMAGENET, Renamed, Source, by_rules, has_all, joined

_PREFIX = r"(?:backbone\.)?"


def _block(theirs: str, ours: str) -> list[Rule]:
    return conv_and_norm(theirs, ours, f"{ours}.norm")


_CLASSIFIER: list[Rule] = [(r"classifier\.4\.(\w+)", r"predictor.\1")]
_FCN_RULES: list[Rule] = [
    *_CLASSIFIER,
    *_block(r"classifier\.0", "context.convs.0"),
    *_block(r"classifier\.0", "projection.conv"),
]
_DEEPLAB_RULES: list[Rule] = [
    *_CLASSIFIER,
    *(r for i in range(4) for r in _block(rf"classifier\.0\.convs\.{i}\.0", f"context.aspp.convs.{i}")),
    (r"classifier\.0\.convs\.4\.1\.(weight|bias)", r"context.aspp.convs.4.1.\1"),
    *_block(r"classifier\.0\.project\.0", "context.aspp.project"),
    *_block(r"classifier\.1", "projection.conv"),
]
_AUXILIARY_RULES: list[Rule] = [
    *_block(r"aux_classifier\.0", "auxiliary.context.convs.0"),
    (r"aux_classifier\.4\.(\w+)", r"auxiliary.predictor.\1"),
]


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames a ResNet, with the head of an FCN or a DeepLabV3 where there is one.

    Raises:
        CheckpointError: if the network has another backbone.
    """
    if has_all(state, r"classifier\.0\.convs\.4\.2\."):
        state = _fold_pooling_norm(state)
    heads = {name: value for name, value in state.items() if "classifier." in name}
    backbone = {name: value for name, value in state.items() if name not in heads}
    if network.backbone_kind == "timm_resnet":  # which has torchvision's names
        backbone = {name.removeprefix("backbone."): value for name, value in backbone.items()}
        renamed = timm_names.rename(backbone, network)
    elif network.backbone_kind == "dilated_resnet":
        rules = prefixed(_backbone_rules(network), _PREFIX, network.backbone_prefix)
        renamed = by_rules(backbone, rules, network)
    else:
        raise CheckpointError(
            f"This is a ResNet of torchvision, and MODEL.BACKBONE.NAME {network.cfg.MODEL.BACKBONE.NAME!r} "
            f"({network.backbone_kind}) is none: build_dilated_resnet_backbone, or build_timm_backbone with "
            "MODEL.TIMM.NAME resnet50 takes it."
        )
    return joined(renamed, by_rules(heads, _head_rules(heads, network), network))


def _backbone_rules(network: Network) -> list[Rule]:
    """Without the stem where the network has another one, whose norm could pass for it."""
    has_basic_stem = f"{network.backbone_prefix}stem.conv2.weight" not in network.shapes
    return [rule for rule in DILATED_RESNET_RULES if has_basic_stem or not rule[1].startswith("stem.")]


def _head_rules(state: Mapping[str, Tensor], network: Network) -> list[Rule]:
    if not network.stages:
        return []
    is_deeplab = has_all(state, r"classifier\.0\.convs\.")
    if network.stages != (["ASPP"] if is_deeplab else ["FCN"]):
        return []
    return prefixed([*(_DEEPLAB_RULES if is_deeplab else _FCN_RULES), *_AUXILIARY_RULES], "", HEAD)


def _fold_pooling_norm(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Merges the norm of ASPP's image pooling into its convolution; ours, as Detectron2's, has none there.

    The same function in evaluation. In training the statistics are those of the checkpoint.
    """
    state = dict(state)
    conv, norm = "classifier.0.convs.4.1.weight", "classifier.0.convs.4.2."
    weight, bias, mean, variance = (
        state.pop(norm + part).double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    state.pop(norm + "num_batches_tracked", None)
    scale = weight / torch.sqrt(variance + eps)
    kind = state[conv].dtype
    state[conv] = (state[conv].double() * scale[:, None, None, None]).to(kind)
    state["classifier.0.convs.4.1.bias"] = (bias - mean * scale).to(kind)
    return state


def _recognises(names: Iterable[str], network: Network) -> bool:
    names = list(names)
    return has_all(names, rf"{_PREFIX}layer1\.0\.conv1\.weight", rf"{_PREFIX}conv1\.weight") and not has_all(
        names, r".*\bstage2\."
    )


SOURCE = Source("torchvision", _recognises, rename, lambda state, cfg: IMAGENET, head=r"classifier\.")
