"""Checkpoints of SegFormer's authors: encoders that were trained on ImageNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.mit_official import convert_official_mit
from regseg_d2.weights.network import Network
from regseg_d2.weights.sources import IMAGENET, Renamed, Source, has_all

_PREFIX = "backbone."


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
    state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
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
