"""Checkpoints of mmsegmentation, and backbones of its relatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.mmseg_backbones import BACKBONE_RULES
from regseg_d2.weights.mmseg_heads import AUXILIARY_RULES, HEAD_RULES, NECK_RULES, deeplabv3plus_rules
from regseg_d2.weights.mmseg_kinds import describe_head, not_in_transformers
from regseg_d2.weights.mmseg_transformers import BACKBONE_RULES as TRANSFORMERS_RULES
from regseg_d2.weights.mmseg_transformers import MASK_CLASSIFIER_RULES, thirds
from regseg_d2.weights.network import HEAD, HUGGINGFACE, Network
from regseg_d2.weights.renaming import Rule, prefixed
from regseg_d2.weights.sources import IMAGENET, Renamed, Source, by_rules, has_all


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames by the rules of the network's backbone, head and auxiliary head.

    Raises:
        CheckpointError: there are no rules for the network's backbone, or transformers has nothing of the
            kind that the file is of.
    """
    if network.model_type:
        return _rename_for_transformers(state, network)
    rules = [*backbone_rules(network, "(?:backbone\\.)?"), *head_rules(state, network)]
    return by_rules(state, rules, network)


def _rename_for_transformers(state: Mapping[str, Tensor], network: Network) -> Renamed:
    if kind := not_in_transformers(state):
        raise CheckpointError(f"not supported: this is {kind}")
    rules = [
        *prefixed(TRANSFORMERS_RULES, "(?:backbone\\.)?", network.backbone_prefix),
        *prefixed(MASK_CLASSIFIER_RULES.get(network.model_type, []), r"decode_head\.", HUGGINGFACE),
    ]
    renamed, unknown = by_rules(state, rules, network)
    for name, value in list(unknown.items()):
        parts, no_place = by_rules(thirds(name, value), rules, network)
        if parts and not no_place:
            renamed |= parts
            del unknown[name]
    return renamed, unknown


def backbone_rules(network: Network, theirs: str) -> list[Rule]:
    """Rules for the network's backbone, whose names begin with the pattern ``theirs`` in the file.

    Raises:
        CheckpointError: if there are none for such a backbone.
    """
    kind = network.backbone_kind
    if kind not in BACKBONE_RULES:
        raise CheckpointError(
            f"Checkpoints of mmsegmentation cannot be loaded into MODEL.BACKBONE.NAME "
            f"{network.cfg.MODEL.BACKBONE.NAME!r} ({kind}); there are rules for {sorted(BACKBONE_RULES)}."
        )
    return prefixed(BACKBONE_RULES[kind], theirs, network.backbone_prefix)


def head_rules(state: Iterable[str], network: Network) -> list[Rule]:
    """Rules for neck, decode head and auxiliary head; none for a head of another package."""
    if not network.stages:
        return []
    # In a cascade the first head's logits are what the second one reads.
    is_cascade = has_all(state, r"decode_head\.1\.")
    theirs, coarse = (r"decode_head\.1\.", r"decode_head\.0\.") if is_cascade else (r"decode_head\.", None)
    rules: list[Rule] = []
    for stage in network.stages:
        rules += prefixed(NECK_RULES.get(stage, []), r"neck\.", HEAD)
        rules += prefixed(HEAD_RULES.get(stage, []), theirs, HEAD)
    low_channels = network.cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS
    if network.stages == ["ASPP"] and len(low_channels) == 1:
        rules += prefixed(deeplabv3plus_rules(low_channels[0]), theirs, HEAD)
    rules += prefixed(AUXILIARY_RULES, coarse or r"auxiliary_head\.", f"{HEAD}auxiliary.")
    return rules


def _recognises(names: Iterable[str], network: Network) -> bool:
    names = list(names)
    prefix = r"(?:backbone\.)?"
    return (
        has_all(names, r"decode_head\.")
        or has_all(names, rf"{prefix}stem\.1\.running_mean", rf"{prefix}layer1\.0\.conv1\.")
        or has_all(names, rf"{prefix}layers\.0\.0\.projection\.")
        or has_all(names, rf"{prefix}stages\.0\.blocks\.0\.attn\.w_msa\.")
        or has_all(names, r"backbone\.(?:layer1|stages|downsample_layers)\.", r"head\.")
    )


SOURCE = Source(
    "mmsegmentation",
    _recognises,
    rename,
    lambda state, cfg: IMAGENET,
    head=r"(?:decode_head|neck)\.",
    describe_head=describe_head,
)
