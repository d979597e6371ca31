"""Checkpoints of SegFormer's authors: encoders that were trained on ImageNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.network import Network
from regseg_d2.weights.renaming import Rule, rename_all
from regseg_d2.weights.sources import IMAGENET, Renamed, Source, has_all


def _as_convolution(weight: Tensor) -> Tensor:
    """A matrix ``(O, I)`` as the weight ``(O, I, 1, 1)`` of a 1x1 convolution."""
    return weight[:, :, None, None]


def _rules_of_stage(stage: int) -> list[Rule]:
    """Rules for a stage, which they count from 1."""
    block, ours = rf"block{stage}\.(\d+)", rf"stages.{stage - 1}.blocks.\1"
    return [
        (rf"patch_embed{stage}\.proj\.(\w+)", rf"stages.{stage - 1}.embed.conv.\1"),
        (rf"patch_embed{stage}\.norm\.(\w+)", rf"stages.{stage - 1}.embed.norm.\1"),
        (rf"{block}\.(norm[12]\.\w+)", rf"{ours}.\2"),
        (rf"{block}\.attn\.qkv\.(\w+)", rf"{ours}.attention.qkv.\2"),
        (rf"{block}\.attn\.proj\.(\w+)", rf"{ours}.attention.out.\2"),
        (rf"{block}\.attn\.sr\.(\w+)", rf"{ours}.attention.reduce.\2"),
        (rf"{block}\.attn\.norm\.(\w+)", rf"{ours}.attention.reduce_norm.\2"),
        (rf"{block}\.mlp\.fc1\.weight", rf"{ours}.mlp.expand.weight", _as_convolution),
        (rf"{block}\.mlp\.fc1\.bias", rf"{ours}.mlp.expand.bias"),
        (rf"{block}\.mlp\.dwconv\.dwconv\.(\w+)", rf"{ours}.mlp.mix.\2"),
        (rf"{block}\.mlp\.fc2\.weight", rf"{ours}.mlp.narrow.weight", _as_convolution),
        (rf"{block}\.mlp\.fc2\.bias", rf"{ours}.mlp.narrow.bias"),
        (rf"norm{stage}\.(\w+)", rf"stages.{stage - 1}.norm.\1"),
    ]


OFFICIAL_RULES: list[Rule] = [rule for i in range(1, 5) for rule in _rules_of_stage(i)]


def convert_official_mit(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Gives the authors' tensors, without a prefix, our names and layout; and the names of those left over.

    Queries, and keys with values, are two tensors there and one here.

    Raises:
        ValueError: if an attention layer has queries without keys and values, or the other way round.
    """
    joined: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".attn.kv." in name:
            if name.replace(".attn.kv.", ".attn.q.") not in state:
                raise ValueError(f"there is {name!r} without the queries' tensor beside it")
            continue
        if ".attn.q." in name:
            other = name.replace(".attn.q.", ".attn.kv.")
            if other not in state:
                raise ValueError(f"there is {name!r} without {other!r}")
            name, value = name.replace(".attn.q.", ".attn.qkv."), torch.cat([value, state[other]])
        joined[name] = value
    return rename_all(joined, OFFICIAL_RULES)


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames the encoder.

    Raises:
        CheckpointError: if the network has another one, or if half of an attention layer is missing.
    """
    if network.backbone_kind != "mit":
        raise CheckpointError(
            f"SegFormer's encoders need MODEL.BACKBONE.NAME build_mit_backbone; it is "
            f"{network.cfg.MODEL.BACKBONE.NAME!r}."
        )
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    try:
        encoder, unknown = convert_official_mit(state)
    except ValueError as error:
        raise CheckpointError(f"The encoder is not whole: {error}.") from error
    renamed = {f"{network.backbone_prefix}{name}": value for name, value in encoder.items()}
    return renamed, {name: state[name] for name in unknown if name in state}


def _recognises(names: Iterable[str], network: Network) -> bool:
    prefix = r"(?:backbone\.)?"
    return has_all(names, rf"{prefix}patch_embed1\.proj\.", rf"{prefix}block1\.0\.attn\.(?:q|kv)\.")


SOURCE = Source("SegFormer's authors", _recognises, rename, lambda state, cfg: IMAGENET)
