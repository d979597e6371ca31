"""Checkpoints of HRNet's authors: of ImageNet, and of their segmentation networks with and without OCR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from regseg_d2.weights import mmseg
from regseg_d2.weights.network import Network
from regseg_d2.weights.renaming import Rule, conv_and_norm, rename_all
from regseg_d2.weights.renaming import rename as rename_one
from regseg_d2.weights.sources import IMAGENET, Renamed, Source, by_rules, has_all, joined


def _block(theirs: str, ours: str) -> list[Rule]:
    return conv_and_norm(theirs, f"{ours}.conv", f"{ours}.bn")


_ATTENTION, _MMSEG_ATTENTION = r"ocr_distri_head\.object_context_block", "decode_head.1.object_context_block"
#: mmsegmentation's names for the tensors of the heads.
_HEAD_RULES: list[Rule] = [
    *_block(r"last_layer\.0", "decode_head.convs.0"),
    (r"last_layer\.3\.(\w+)", r"decode_head.conv_seg.\1"),
    *_block(r"aux_head\.0", "decode_head.0.convs.0"),
    (r"aux_head\.2\.(\w+)", r"decode_head.0.conv_seg.\1"),
    *_block(r"conv3x3_ocr\.0", "decode_head.1.bottleneck"),
    *_block(rf"{_ATTENTION}\.f_pixel\.0", f"{_MMSEG_ATTENTION}.query_project.0"),
    *_block(rf"{_ATTENTION}\.f_pixel\.2", f"{_MMSEG_ATTENTION}.query_project.1"),
    *_block(rf"{_ATTENTION}\.f_object\.0", f"{_MMSEG_ATTENTION}.key_project.0"),
    *_block(rf"{_ATTENTION}\.f_object\.2", f"{_MMSEG_ATTENTION}.key_project.1"),
    *_block(rf"{_ATTENTION}\.f_down\.0", f"{_MMSEG_ATTENTION}.value_project"),
    *_block(rf"{_ATTENTION}\.f_up\.0", f"{_MMSEG_ATTENTION}.out_project"),
    *_block(r"ocr_distri_head\.conv_bn_dropout\.0", f"{_MMSEG_ATTENTION}.bottleneck"),
    (r"cls_head\.(\w+)", r"decode_head.1.conv_seg.\1"),
]


def rename(state: Mapping[str, Tensor], network: Network) -> Renamed:
    """Renames by mmsegmentation's rules, whose backbone has the authors' names."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith("loss.")}
    heads, others = rename_all(state, _HEAD_RULES)
    theirs = {rename_one(name, _HEAD_RULES): name for name in state}
    renamed, unknown = by_rules(_fold_biases(heads), mmseg.head_rules(heads, network), network)
    unknown = {theirs[name]: value for name, value in unknown.items()}
    backbone = {name: state[name] for name in others}
    rules = mmseg.backbone_rules(network, "")
    return joined(by_rules(backbone, rules, network), (renamed, unknown))


def _fold_biases(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the biases of convolutions with a norm into the norm's mean, where they cancel as before."""
    folded = dict(heads)
    for name in heads:
        mean = name.removesuffix("conv.bias") + "bn.running_mean"
        if name.endswith(".conv.bias") and mean in heads:
            folded[mean] = heads[mean] - folded.pop(name)
    return folded


def _recognises(names: Iterable[str], network: Network) -> bool:
    return has_all(
        names, r"(?:model\.)?stage2\.0\.branches\.0\.0\.conv1\.weight", r"(?:model\.)?transition1\."
    )


SOURCE = Source(
    "HRNet's authors",
    _recognises,
    rename,
    lambda state, cfg: IMAGENET,
    head=r"(?:model\.)?(?:last_layer|conv3x3_ocr|ocr_distri_head|cls_head)\.",
)
