"""Swin of mmsegmentation: names, and the order in which it merges patches."""

from __future__ import annotations

from torch import Tensor

from regseg_d2.weights.renaming import Rule


def merged_channels(value: Tensor) -> Tensor:
    """Reorders what reads four neighbouring pixels as one, between stages.

    mmsegmentation gathers them by ``nn.Unfold``: number ``4 * channel + 2 * row + column`` of the joined
    channels. In timm it is ``(2 * column + row) * channels + channel``, as in the authors' code.

    Args:
        value: weight ``(2C, 4C)`` of the reduction, or weight or bias ``(4C,)`` of the norm before it.

    Returns:
        A tensor of the same shape.
    """
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)


_BLOCK, _OURS = r"stages\.(\d)\.blocks\.(\d+)", r"network.layers_\1.blocks.\2"

# Merging stands at the end of a stage there, and at the beginning of the next one here.
_MERGING: list[Rule] = [
    (
        rf"stages\.{stage}\.downsample\.(norm|reduction)\.(\w+)",
        rf"network.layers_{stage + 1}.downsample.\1.\2",
        merged_channels,
    )
    for stage in range(3)
]

#: The tables of relative positions are in the same order; the numbers of their rows
#: (``relative_position_index``) are computed, not loaded.
SWIN_RULES: list[Rule] = [
    (r"patch_embed\.projection\.(\w+)", r"network.patch_embed.proj.\1"),
    (r"patch_embed\.norm\.(\w+)", r"network.patch_embed.norm.\1"),
    (rf"{_BLOCK}\.(norm[12])\.(\w+)", rf"{_OURS}.\3.\4"),
    (rf"{_BLOCK}\.attn\.w_msa\.relative_position_bias_table", rf"{_OURS}.attn.relative_position_bias_table"),
    (rf"{_BLOCK}\.attn\.w_msa\.(qkv|proj)\.(\w+)", rf"{_OURS}.attn.\3.\4"),
    (rf"{_BLOCK}\.ffn\.layers\.0\.0\.(\w+)", rf"{_OURS}.mlp.fc1.\3"),
    (rf"{_BLOCK}\.ffn\.layers\.1\.(\w+)", rf"{_OURS}.mlp.fc2.\3"),
    *_MERGING,
    *[(rf"norm{stage}\.(\w+)", rf"out_norms.res{stage + 2}.\1") for stage in range(4)],
]
