"""The names of mmsegmentation's Mask2Former and MaskFormer, and those of transformers.

Both have levels from the lowest resolution on, but for MaskFormer's pyramid, the class "no object" last, and
positions that are computed. Rules may name several places for one tensor: releases of transformers differ in
names, and only those of the network count.
"""

from __future__ import annotations

import re

from torch import Tensor

from regseg_d2.weights.mmseg_backbones import merged_channels
from regseg_d2.weights.renaming import Rule

_FUSED = re.compile(r"(?:qkv\.|in_proj_)(?=(?:weight|bias)$)")
_LINEAR_OF = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def thirds(name: str, value: Tensor) -> dict[str, Tensor]:
    """Splits what makes queries, keys and values of an attention layer.

    Args:
        name: a tensor's name, such as ``attn.qkv.weight`` or ``attn.in_proj_bias``.
        value: the tensor ``(3C, ...)``, for queries, keys and values in this order.

    Returns:
        The three tensors ``(C, ...)``, as ``attn.query.weight`` and so on; nothing for another name.
    """
    if not _FUSED.search(name):
        return {}
    return {
        _FUSED.sub(f"{part}.", name): third for part, third in zip(_LINEAR_OF, value.chunk(3), strict=True)
    }


def _swin_rules(model: str) -> list[Rule]:
    """Rules for ``SwinTransformer``; ``model`` is what stands around embeddings and encoder here."""
    block, ours = r"stages\.(\d)\.blocks\.(\d+)", rf"{model}encoder.layers.\1.blocks.\2"
    table, dense = "relative_position_bias_table", {"0.0": ("fc1", "intermediate"), "1": ("fc2", "output")}
    return [
        (r"patch_embed\.projection\.(\w+)", rf"{model}embeddings.patch_embeddings.projection.\1"),
        (r"patch_embed\.norm\.(\w+)", rf"{model}embeddings.norm.\1"),
        (rf"{block}\.norm1\.(\w+)", rf"{ours}.layernorm_before.\3"),
        (rf"{block}\.norm2\.(\w+)", rf"{ours}.layernorm_after.\3"),
        (rf"{block}\.attn\.w_msa\.{table}", rf"{ours}.attention.relative_position_bias.{table}"),
        (rf"{block}\.attn\.w_msa\.{table}", rf"{ours}.attention.self.{table}"),
        (rf"{block}\.attn\.w_msa\.(query|key|value)\.(\w+)", rf"{ours}.attention.self.\3.\4"),
        *[
            (rf"{block}\.attn\.w_msa\.{part}\.(\w+)", rf"{ours}.attention.{linear}.\3")
            for part, linear in _LINEAR_OF.items()
        ],
        (rf"{block}\.attn\.w_msa\.proj\.(\w+)", rf"{ours}.attention.o_proj.\3"),
        (rf"{block}\.attn\.w_msa\.proj\.(\w+)", rf"{ours}.attention.output.dense.\3"),
        *[
            (rf"{block}\.ffn\.layers\.{re.escape(number)}\.(\w+)", rf"{ours}.{place}.\3")
            for number, (linear, layer) in dense.items()
            for place in (f"mlp.{linear}", f"{layer}.dense")
        ],
        (
            r"stages\.(\d)\.downsample\.(norm|reduction)\.(\w+)",
            rf"{model}encoder.layers.\1.downsample.\2.\3",
            merged_channels,
        ),
    ]


def _resnet_stage(stage: int) -> list[Rule]:
    """Rules for ``layer1`` (stage 0) to ``layer4`` of ``ResNet``."""
    theirs, ours = rf"layer{stage + 1}\.(\d+)", rf"encoder.stages.{stage}.layers.\1"
    return [
        *[
            rule
            for k in range(3)
            for rule in (
                (rf"{theirs}\.conv{k + 1}\.(\w+)", rf"{ours}.layer.{k}.convolution.\2"),
                (rf"{theirs}\.bn{k + 1}\.(\w+)", rf"{ours}.layer.{k}.normalization.\2"),
            )
        ],
        (rf"{theirs}\.downsample\.0\.(\w+)", rf"{ours}.shortcut.convolution.\2"),
        (rf"{theirs}\.downsample\.1\.(\w+)", rf"{ours}.shortcut.normalization.\2"),
    ]


#: Rules for the tensors of a backbone, without its prefix: ResNet, Swin, and the Swin of MaskFormer's own.
BACKBONE_RULES: list[Rule] = [
    (r"conv1\.(\w+)", r"embedder.embedder.convolution.\1"),
    (r"bn1\.(\w+)", r"embedder.embedder.normalization.\1"),
    *[rule for stage in range(4) for rule in _resnet_stage(stage)],
    *[rule for model in ("swin.", "model.", "") for rule in _swin_rules(model)],
    *[(rf"norm{i}\.(\w+)", rf"hidden_states_norms.stage{i + 1}.\1") for i in range(4)],
    *[(rf"norm{i}\.(\w+)", rf"hidden_states_norms.{i}.\1") for i in range(4)],
]

_PIXEL, _QUERIES = "model.pixel_level_module.decoder", "model.transformer_module"


def _conv_and_norm(theirs: str, ours: str) -> list[Rule]:
    """Rules for a convolution with group norm; without groups in ``theirs``."""
    return [(rf"{theirs}\.conv\.(\w+)", rf"{ours}.0.\1"), (rf"{theirs}\.gn\.(\w+)", rf"{ours}.1.\1")]


def _layers(theirs: str, ours: str, norms: tuple[str, ...]) -> list[Rule]:
    """Rules for norms and feed-forward network of the layers of a transformer."""
    theirs, ours = rf"{theirs}\.layers\.(\d+)", rf"{ours}.layers.\1"
    return [
        *[(rf"{theirs}\.norms\.{i}\.(\w+)", rf"{ours}.{norm}.\2") for i, norm in enumerate(norms)],
        *[
            (rf"{theirs}\.ffn\.layers\.{number}\.(\w+)", rf"{ours}.{mlp}{linear}.\2")
            for number, linear in ((r"0\.0", "fc1"), ("1", "fc2"))
            for mlp in ("mlp.", "")
        ],
    ]


def _attention(theirs: str, ours: str) -> list[Rule]:
    """Rules for an attention layer of the transformer of queries that has its thirds apart here."""
    theirs, ours = (
        rf"transformer_decoder\.layers\.(\d+)\.{theirs}\.attn",
        rf"{_QUERIES}.decoder.layers.\1.{ours}",
    )
    return [
        *[(rf"{theirs}\.{part}\.(\w+)", rf"{ours}.{linear}.\2") for part, linear in _LINEAR_OF.items()],
        *[(rf"{theirs}\.out_proj\.(\w+)", rf"{ours}.{out}.\2") for out in ("out_proj", "o_proj")],
    ]


def _head(mask_embedder: str) -> list[Rule]:
    """Rules for what both have."""
    return [
        (r"pixel_decoder\.mask_feature\.(\w+)", rf"{_PIXEL}.mask_projection.\1"),
        (r"query_embed\.weight", f"{_QUERIES}.queries_embedder.weight"),
        (r"transformer_decoder\.post_norm\.(\w+)", rf"{_QUERIES}.decoder.layernorm.\1"),
        *_attention("self_attn", "self_attn"),
        (r"cls_embed\.(\w+)", r"class_predictor.\1"),
        *[(rf"mask_embed\.{2 * i}\.(\w+)", rf"{mask_embedder}.{i}.0.\1") for i in range(3)],
    ]


_MASK2FORMER_RULES: list[Rule] = [
    *[
        r
        for i in range(3)
        for r in _conv_and_norm(rf"pixel_decoder\.input_convs\.{i}", f"{_PIXEL}.input_projections.{i}")
    ],
    (r"pixel_decoder\.level_encoding\.weight", f"{_PIXEL}.level_embed"),
    (
        r"pixel_decoder\.(encoder\.layers\.\d+\.self_attn\.(?:\w+_offsets|\w+_weights|\w+_proj)\.\w+)",
        rf"{_PIXEL}.\1",
    ),
    *_layers(r"pixel_decoder\.encoder", f"{_PIXEL}.encoder", ("self_attn_layer_norm", "final_layer_norm")),
    *_conv_and_norm(r"pixel_decoder\.lateral_convs\.0", f"{_PIXEL}.adapter_1"),
    *_conv_and_norm(r"pixel_decoder\.output_convs\.0", f"{_PIXEL}.layer_1"),
    *_head(f"{_QUERIES}.decoder.mask_predictor.mask_embedder"),
    (r"query_feat\.weight", f"{_QUERIES}.queries_features.weight"),
    (r"level_embed\.weight", f"{_QUERIES}.level_embed.weight"),
    (r"decoder_input_projs\.(\d)\.(\w+)", rf"{_QUERIES}.input_projections.\1.\2"),
    (
        r"transformer_decoder\.(layers\.\d+\.cross_attn)\.attn\.(in_proj_\w+|out_proj\.\w+)",
        rf"{_QUERIES}.decoder.\1.\2",
    ),
    # Here queries look at the pixels before they look at each other.
    *_layers(
        "transformer_decoder",
        f"{_QUERIES}.decoder",
        ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm"),
    ),
]

_MASKFORMER_RULES: list[Rule] = [
    *_conv_and_norm(r"pixel_decoder\.last_feat_conv", f"{_PIXEL}.fpn.stem"),
    # The pyramid is counted from the highest resolution there, from the lowest here.
    *[
        rule
        for i in range(3)
        for theirs, ours in (("lateral", "proj"), ("output", "block"))
        for rule in _conv_and_norm(
            rf"pixel_decoder\.{theirs}_convs\.{i}", f"{_PIXEL}.fpn.layers.{2 - i}.{ours}"
        )
    ],
    *_head("mask_embedder"),
    (r"decoder_input_proj\.(\w+)", rf"{_QUERIES}.input_projection.\1"),
    *_attention("cross_attn", "encoder_attn"),
    *_layers(
        "transformer_decoder",
        f"{_QUERIES}.decoder",
        ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    ),
]

#: Rules for the tensors of a decode head, without its prefix, by transformers' ``model_type``.
MASK_CLASSIFIER_RULES: dict[str, list[Rule]] = {
    "mask2former": _MASK2FORMER_RULES,
    "maskformer": _MASKFORMER_RULES,
}
