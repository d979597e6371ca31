"""Checkpoints of Detectron2: backbones of its model zoo, and its DeepLabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.config import CfgNode
from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.network import BACKBONE, HEAD, Network
from regseg_d2.weights.reading import check_names
from regseg_d2.weights.renaming import Rule, prefixed
from regseg_d2.weights.sources import IMAGENET, ImageValues, Renamed, Source, by_rules, has_all

#: ImageNet weights of MSRA, in the names of Caffe2, whose pixels were not scaled.
_MSRA = ImageValues("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
_CAFFE2 = r"(?:conv1_w|res\d_\d+_branch\d\w?_w|res_conv1_bn_s)$"

#: DeepLabV3 and DeepLabV3+ in the stages of our head.
_DEEPLAB_RULES: list[Rule] = [
    (r"(predictor\.\w+)", r"\1"),
    (r"aspp\.(.+)", r"context.aspp.\1"),
    (r"decoder\.res5\.project_conv\.(.+)", r"context.aspp.\1"),
    (r"decoder\.res[234]\.project_conv\.(.+)", r"skips.0.project.\1"),
    (r"decoder\.res[234]\.fuse_conv\.0\.(.+)", r"skips.0.fuse.\1"),
    (r"decoder\.res[234]\.fuse_conv\.1\.(.+)", r"projection.conv.\1"),
]


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames a ResNet, and the head of a DeepLab where our ASPP takes it.

    Raises:
        CheckpointError: if the backbone is no ResNet of Detectron2's.
    """
    if network.backbone_kind != "dilated_resnet":
        raise CheckpointError(
            f"The ResNets of Detectron2 need MODEL.BACKBONE.NAME build_dilated_resnet_backbone; it is "
            f"{network.cfg.MODEL.BACKBONE.NAME!r}."
        )
    if _is_caffe2(state):
        momentum_free = [name for name in state if not name.endswith("_momentum")]
        names = convert_basic_c2_names(momentum_free)
        state = {new: state[name] for name, new in zip(momentum_free, names, strict=True)}
        state.update(_missing_statistics(state))
    rules: list[Rule] = [
        (r"(?:backbone\.)?(?:bottom_up\.)?((?:stem|res[2-5])\..+)", rf"{network.backbone_prefix}\1"),
        (rf"({re.escape(BACKBONE)}fpn_.+)", r"\1"),
    ]
    if network.stages:
        rules += prefixed(_DEEPLAB_RULES if network.stages == ["ASPP"] else [], r"sem_seg_head\.", HEAD)
    else:
        rules.append((rf"({re.escape(HEAD)}.+)", r"\1"))
    return by_rules(state, rules, network)


def _missing_statistics(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Mean and variance of norms whose statistics Caffe2's weights have merged into scale and shift."""
    added = {}
    for name, value in state.items():
        norm = name.removesuffix("weight")
        if name.endswith(".norm.weight") and f"{norm}running_mean" not in state:
            added[f"{norm}running_mean"] = torch.zeros_like(value)
            added[f"{norm}running_var"] = torch.ones_like(value) - eps
    return added


def image_values(state: Mapping[str, Tensor], cfg: CfgNode) -> ImageValues:
    """BGR for weights in Caffe2's names, RGB for those that come from torchvision."""
    return _MSRA if _is_caffe2(state) else IMAGENET


def zoo_content(data: Any, path: str) -> dict[str, Any]:
    """What a ``.pkl`` file holds, in the form that Detectron2's checkpointer takes.

    Raises:
        CheckpointError: if it is no dict.
    """
    if not isinstance(data, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(data).__name__}; expected a dict of weights.")
    if "model" in data and "__author__" in data:
        return dict(data)
    weights = data.get("blobs", data)
    check_names(weights, path)
    weights = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def has_foreign_head(names: Iterable[str], network: Network) -> bool:
    """Whether a checkpoint has the head of a DeepLab of Detectron2's, and the network one of ours."""
    return bool(network.stages) and has_all(names, r"sem_seg_head\.(?:decoder|aspp)\.")


def _is_caffe2(names: Iterable[str]) -> bool:
    return any(re.match(_CAFFE2, name) for name in names)


def _recognises(names: Iterable[str], network: Network) -> bool:
    names = list(names)
    return (
        has_foreign_head(names, network)
        or _is_caffe2(names)
        or has_all(names, r"stem\.conv1\.weight", r"res2\.0\.")
        or has_all(names, r"backbone\.bottom_up\.res2\.0\.")
    )


SOURCE = Source("Detectron2", _recognises, rename, image_values, head=re.escape(HEAD))
