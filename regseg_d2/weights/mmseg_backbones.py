"""The names of mmsegmentation's backbones, and ours."""

from __future__ import annotations

from torch import Tensor

from regseg_d2.weights.renaming import Rule

_MIT_BLOCK, _MIT_OURS = r"layers\.(\d)\.1\.(\d+)", r"stages.\1.blocks.\2"

#: SegFormer's encoder, ``MixVisionTransformer``.
MIT_RULES: list[Rule] = [
    (r"layers\.(\d)\.0\.projection\.(\w+)", r"stages.\1.embed.conv.\2"),
    (r"layers\.(\d)\.0\.norm\.(\w+)", r"stages.\1.embed.norm.\2"),
    (rf"{_MIT_BLOCK}\.(norm[12])\.(\w+)", rf"{_MIT_OURS}.\3.\4"),
    (rf"{_MIT_BLOCK}\.attn\.attn\.in_proj_(weight|bias)", rf"{_MIT_OURS}.attention.qkv.\3"),
    (rf"{_MIT_BLOCK}\.attn\.attn\.out_proj\.(\w+)", rf"{_MIT_OURS}.attention.out.\3"),
    (rf"{_MIT_BLOCK}\.attn\.sr\.(\w+)", rf"{_MIT_OURS}.attention.reduce.\3"),
    (rf"{_MIT_BLOCK}\.attn\.norm\.(\w+)", rf"{_MIT_OURS}.attention.reduce_norm.\3"),
    (rf"{_MIT_BLOCK}\.ffn\.layers\.0\.(\w+)", rf"{_MIT_OURS}.mlp.expand.\3"),
    (rf"{_MIT_BLOCK}\.ffn\.layers\.1\.(\w+)", rf"{_MIT_OURS}.mlp.mix.\3"),
    (rf"{_MIT_BLOCK}\.ffn\.layers\.4\.(\w+)", rf"{_MIT_OURS}.mlp.narrow.\3"),
    (r"layers\.(\d)\.2\.(\w+)", r"stages.\1.norm.\2"),
]

_STAGE_BLOCK = r"layer{}\.(\d+)"


def _detectron2_stage(stage: int) -> list[Rule]:
    """Rules for ``layer1`` (stage 1) to ``layer4``, which Detectron2 calls ``res2`` to ``res5``."""
    theirs, ours = _STAGE_BLOCK.format(stage), rf"res{stage + 1}.\1"
    return [
        (rf"{theirs}\.conv(\d)\.weight", rf"{ours}.conv\2.weight"),
        (rf"{theirs}\.bn(\d)\.(\w+)", rf"{ours}.conv\2.norm.\3"),
        (rf"{theirs}\.downsample\.0\.weight", rf"{ours}.shortcut.weight"),
        (rf"{theirs}\.downsample\.1\.(\w+)", rf"{ours}.shortcut.norm.\2"),
    ]


#: ``ResNet`` (one 7x7 convolution in the stem) and ``ResNetV1c`` (three 3x3) in Detectron2's ResNet.
DILATED_RESNET_RULES: list[Rule] = [
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    *[(rf"stem\.{3 * i}\.weight", rf"stem.conv{i + 1}.weight") for i in range(3)],
    *[(rf"stem\.{3 * i + 1}\.(\w+)", rf"stem.conv{i + 1}.norm.\1") for i in range(3)],
    *[rule for stage in range(1, 5) for rule in _detectron2_stage(stage)],
]

#: ``ResNet``, ``ResNetV1c`` and ``ResNetV1d`` in timm's ResNet, where the stem's last norm is ``bn1``.
TIMM_RESNET_RULES: list[Rule] = [
    (r"stem\.([01346])\.(\w+)", r"network.conv1.\1.\2"),
    (r"stem\.7\.(\w+)", r"network.bn1.\1"),
    (r"((?:conv1|bn1|layer[1-4])\..+)", r"network.\1"),
]

#: Both have HRNet's authors' names.
TIMM_HRNET_RULES: list[Rule] = [
    (r"((?:conv[12]|bn[12]|layer1|transition[123]|stage[234])\..+)", r"network.\1"),
]

_CONVNEXT_BLOCK, _CONVNEXT_OURS = r"stages\.(\d)\.(\d+)", r"network.stages_\1.blocks.\2"

#: ``mmpretrain.ConvNeXt``, mmsegmentation's ConvNeXt.
TIMM_CONVNEXT_RULES: list[Rule] = [
    (r"downsample_layers\.0\.([01])\.(\w+)", r"network.stem_\1.\2"),
    (r"downsample_layers\.([1-3])\.([01])\.(\w+)", r"network.stages_\1.downsample.\2.\3"),
    (rf"{_CONVNEXT_BLOCK}\.gamma", rf"{_CONVNEXT_OURS}.gamma"),
    (rf"{_CONVNEXT_BLOCK}\.depthwise_conv\.(\w+)", rf"{_CONVNEXT_OURS}.conv_dw.\3"),
    (rf"{_CONVNEXT_BLOCK}\.norm\.(\w+)", rf"{_CONVNEXT_OURS}.norm.\3"),
    (rf"{_CONVNEXT_BLOCK}\.pointwise_conv([12])\.(\w+)", rf"{_CONVNEXT_OURS}.mlp.fc\3.\4"),
    *[(rf"norm{stage}\.(\w+)", rf"out_norms.res{stage + 2}.\1") for stage in range(4)],
]


def merged_channels(value: Tensor) -> Tensor:
    """Reorders what reads four neighbouring pixels as one, between stages.

    That is weight ``(2C, 4C)`` of the reduction, or weight or bias ``(4C,)`` of the norm before it.
    mmsegmentation gathers them by ``nn.Unfold``: number ``4 * channel + 2 * row + column`` of the joined
    channels. In timm it is ``(2 * column + row) * channels + channel``, as in the authors' code.
    """
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)


_SWIN_BLOCK, _SWIN_OURS = r"stages\.(\d)\.blocks\.(\d+)", r"network.layers_\1.blocks.\2"

# Merging stands at the end of a stage there, and at the beginning of the next one here.
_MERGING: list[Rule] = [
    (
        rf"stages\.{stage}\.downsample\.(norm|reduction)\.(\w+)",
        rf"network.layers_{stage + 1}.downsample.\1.\2",
        merged_channels,
    )
    for stage in range(3)
]

#: Swin. The tables of relative positions are in the same order; the numbers of their rows
#: (``relative_position_index``) are computed, not loaded.
SWIN_RULES: list[Rule] = [
    (r"patch_embed\.projection\.(\w+)", r"network.patch_embed.proj.\1"),
    (r"patch_embed\.norm\.(\w+)", r"network.patch_embed.norm.\1"),
    (rf"{_SWIN_BLOCK}\.(norm[12])\.(\w+)", rf"{_SWIN_OURS}.\3.\4"),
    (
        rf"{_SWIN_BLOCK}\.attn\.w_msa\.relative_position_bias_table",
        rf"{_SWIN_OURS}.attn.relative_position_bias_table",
    ),
    (rf"{_SWIN_BLOCK}\.attn\.w_msa\.(qkv|proj)\.(\w+)", rf"{_SWIN_OURS}.attn.\3.\4"),
    (rf"{_SWIN_BLOCK}\.ffn\.layers\.0\.0\.(\w+)", rf"{_SWIN_OURS}.mlp.fc1.\3"),
    (rf"{_SWIN_BLOCK}\.ffn\.layers\.1\.(\w+)", rf"{_SWIN_OURS}.mlp.fc2.\3"),
    *_MERGING,
    *[(rf"norm{stage}\.(\w+)", rf"out_norms.res{stage + 2}.\1") for stage in range(4)],
]

#: Rules for the tensors of a backbone, without its prefix, by the backbone's kind here; timm's networks by
#: timm's module.
BACKBONE_RULES: dict[str, list[Rule]] = {
    "dilated_resnet": DILATED_RESNET_RULES,
    "mit": MIT_RULES,
    "timm_convnext": TIMM_CONVNEXT_RULES,
    "timm_hrnet": TIMM_HRNET_RULES,
    "timm_resnet": TIMM_RESNET_RULES,
    "timm_swin_transformer": SWIN_RULES,
}
