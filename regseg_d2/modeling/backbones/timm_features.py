"""Which features of a timm network are taken, under which names, and how timm is asked for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.modeling.backbones.timm_private import FeatureGetterNet

STAGES = ("res1", "res2", "res3", "res4", "res5")

#: Options without which the networks of one of timm's modules read images of one size only, or do not give
#: the features that segmentation uses. ``MODEL.TIMM.OPTIONS`` comes after them.
FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    # The four branches, not the wider features that the classifier reads.
    "hrnet": {"feature_location": ""},
    # Windows of their full size that are shifted in all stages. Otherwise timm shrinks the windows, and does
    # not shift them, where the feature of a 224x224 image would be no larger than one.
    "swin_transformer": {"strict_img_size": False, "always_partition": True},
    "swin_transformer_v2": {"strict_img_size": False, "always_partition": True},
    "swin_transformer_v2_cr": {"strict_img_size": False},
    # Position embeddings are interpolated to the image's size.
    "vision_transformer": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
}

#: timm's modules whose networks would mix up the positions of an image with as many pixels as theirs.
ONE_SIZE = ("hiera", "levit", "efficientformer_v2")

#: Keyword arguments that other keys set, or that would fetch files.
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_RESERVED = {
    **dict.fromkeys(("features_only", "in_chans"), ""),
    "out_indices": "MODEL.TIMM.OUT_FEATURES",
    "output_stride": "MODEL.TIMM.OUTPUT_STRIDE",
    **dict.fromkeys(_FETCHING, "MODEL.TIMM.PRETRAINED"),
}

# What timm's constructors raise for arguments they do not take.
_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Feature:
    """One feature of a network, under the name ``res1`` to ``res5``.

    ``index`` is its number among all features that timm knows of the network, ``module`` timm's name of the
    module that puts it out.
    """

    name: str
    index: int
    channels: int
    stride: int
    module: str


class NormedFeatures(FeatureGetterNet):
    """A plain vision transformer whose every feature goes through its own last norm."""

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        super().__init__(model, norm=True, **arguments)


def family(name: str) -> str:
    """The module of timm that a network is in, such as ``"swin_transformer"``."""
    return timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]


def creation_options(
    name: str, *, output_stride: int, in_channels: int, options: Mapping[str, Any], drop_path: float
) -> dict[str, Any]:
    """Keyword arguments for ``timm.create_model``, but for the choice of features.

    Raises:
        ConfigError: if an option belongs to a key of its own, or is given twice.
    """
    for option in options:
        if option in _RESERVED:
            hint = f"; it is {_RESERVED[option]}" if _RESERVED[option] else ""
            raise ConfigError(f"MODEL.TIMM.OPTIONS.{option} cannot be given{hint}")
    check_key("MODEL.TIMM.DROP_PATH", drop_path, 0 <= drop_path < 1, "a number from 0 to below 1")
    if drop_path and "drop_path_rate" in options:
        raise ConfigError("MODEL.TIMM.DROP_PATH and MODEL.TIMM.OPTIONS.drop_path_rate: give one of them")
    arguments = {"in_chans": in_channels, **FAMILY_OPTIONS.get(family(name), {}), **options}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if output_stride != 32:  # as a network is; many do not know the argument
        arguments["output_stride"] = output_stride
    return arguments


def create(name: str, arguments: Mapping[str, Any], **selection: Any) -> Any:
    """Calls ``timm.create_model`` for a network of features, with random weights.

    Raises:
        ConfigError: if timm refuses.
    """
    try:
        return timm.create_model(name, features_only=True, pretrained=False, **arguments, **selection)
    except _REFUSALS as error:
        if "output_stride" in arguments and "'output_stride'" in str(error):
            raise ConfigError(
                f"MODEL.TIMM.OUTPUT_STRIDE is {arguments['output_stride']}, and {name!r} cannot be dilated; "
                "set it to 32, which leaves the strides of a network as they are"
            ) from error
        shown = {k: v for k, v in arguments.items() if k not in ("in_chans", "output_stride")}
        raise ConfigError(
            f"timm cannot build {name!r} as a backbone with MODEL.TIMM.OUTPUT_STRIDE "
            f"{arguments.get('output_stride', 32)} and options {shown}: {type(error).__name__}: {error}"
        ) from error


def known_features(name: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What timm tells of all features of a network: channels, stride, module."""
    # Not every version of timm can build every network without memory; a real refusal comes again.
    first = {"out_indices": (0,)}  # there in any network; timm's default may be more features than there are
    with suppress(ConfigError), torch.device("meta"):  # no memory, no random numbers, next to no time
        return create(name, arguments, **first).feature_info.info
    return create(name, arguments, **first).feature_info.info


def choose_features(
    name: str, known: Sequence[Mapping[str, Any]], out_features: Sequence[str], out_blocks: Sequence[int]
) -> list[Feature]:
    """Chooses features by name.

    A feature is named after the number of halvings of the image before it, dilation left aside. Networks
    whose blocks all have one stride (plain vision transformers) put out ``out_blocks``, and the names follow
    their order.

    Args:
        name: the network.
        known: see :func:`known_features`.
        out_features: names, ``res1`` to ``res5``.
        out_blocks: numbers of blocks from 0, one a name, for networks of one stride; empty is the last
            block of each of as many equal parts as there are names.

    Raises:
        ConfigError: if the network has no such features or blocks.
    """
    if not out_features or (unknown := sorted(set(out_features) - set(STAGES))):
        wrong = f"unknown {unknown}" if out_features else "it is empty"
        raise ConfigError(f"MODEL.TIMM.OUT_FEATURES: {wrong}; expected among {STAGES}")
    wanted = sorted(set(out_features))
    if has_one_stride(known):
        indices = _blocks(name, len(known), len(wanted), out_blocks)
    else:
        if out_blocks:
            raise ConfigError(
                f"MODEL.TIMM.OUT_BLOCKS is {list(out_blocks)}, and {name!r} has stages; it has to be []"
            )
        names = stage_names(known)
        if missing := sorted(set(wanted) - set(names)):
            there = [stage for stage in names if stage in STAGES]
            raise ConfigError(f"MODEL.TIMM.OUT_FEATURES: {name!r} has no {missing}; it has {there}")
        indices = [names.index(stage) for stage in wanted]
    return [
        Feature(stage, index, known[index]["num_chs"], known[index]["reduction"], str(known[index]["module"]))
        for stage, index in zip(wanted, indices, strict=True)
    ]


def has_one_stride(known: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a network is blocks of one stride, as plain vision transformers are."""
    return len(known) > 1 and len({info["reduction"] for info in known}) == 1


def stage_names(known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all features of a network with stages: the first one's stride tells how they begin."""
    first = round(math.log2(known[0]["reduction"]))
    return [f"res{first + index}" for index in range(len(known))]


def size_multiple(network: nn.Module, name: str, known: Sequence[Mapping[str, Any]], stride: int) -> int:
    """What height and width of the images have to be multiples of.

    Args:
        network: the network of features.
        name: its name.
        known: see :func:`known_features`.
        stride: the largest one among the features that are taken.
    """
    # All branches of an HRNet are computed, and have to fit each other.
    strides = [info["reduction"] for info in known] if family(name) == "hrnet" else []
    # MaxViT's windows and grids have to fill every feature.
    sides = {side for module in network.modules() for side in getattr(module, "partition_size", ())}
    return max([*strides, stride]) * (sides.pop() if len(sides) == 1 else 1)


def fixed_size(network: nn.Module, name: str, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that a network was made for, if its layers need not take others."""
    published = getattr(network, "pretrained_cfg", None) or {}
    if not published.get("fixed_input_size") or family(name) in FAMILY_OPTIONS:
        return None
    size = arguments.get("img_size", published["input_size"][-2:])
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def drop_unused_blocks(network: nn.Module, features: Sequence[Feature]) -> None:
    """Takes away the blocks behind the last feature, where timm would compute them for nothing.

    Their parameters would never have a gradient, which DistributedDataParallel refuses.
    """
    stage, _, number = features[-1].module.partition(".")
    if isinstance(network, EfficientNetFeatures) and network.feature_hooks is None and stage == "blocks":
        network.blocks = network.blocks[: int(number) + 1]


def _blocks(name: str, depth: int, count: int, out_blocks: Sequence[int]) -> list[int]:
    if not out_blocks:
        return [(part + 1) * depth // count - 1 for part in range(count)]
    blocks = list(out_blocks)
    if len(blocks) != count or blocks != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < depth:
        raise ConfigError(
            f"MODEL.TIMM.OUT_BLOCKS is {blocks}; expected {count} increasing numbers, one for each of "
            f"MODEL.TIMM.OUT_FEATURES, of the blocks 0 to {depth - 1} of {name!r}"
        )
    return blocks
