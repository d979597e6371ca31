"""MLPFusion: the all-MLP decoder of SegFormer."""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import FUSION
from regseg_d2.modeling.heads.stages import Fusion
from regseg_d2.modeling.layers import conv_norm_relu, resize_and_concat


@FUSION.register()
class MLPFusion(Fusion):
    """One width for all features, upsampled and concatenated (Xie et al., SegFormer, NeurIPS 2021, Eq. 4).

    The layer that mixes them (mmsegmentation's ``fusion_conv``) is the projection of the head, with
    ``PROJECTION_KERNEL_SIZE: 1``; between them stands ``CONTEXT: FCN`` with ``FCN_NUM_CONVS: 0``.

    Eq. 4 has a plain linear layer on each feature, and so has its authors' code. mmsegmentation 1.2, where
    most published checkpoints come from, has a norm and a ReLU behind it; that is the default here.
    The authors concatenate by decreasing stride; here, as in mmsegmentation, the smallest stride is first.

    Args:
        channels: channels that each is brought to: 256 for MiT-B0 and B1, 768 for larger ones in the paper;
            256 for all in mmsegmentation.
        level_norm: a norm and a ReLU behind the linear layer of each feature.
    """

    #: The output is the encoder's stages side by side; nothing mixes them yet.
    keeps_levels_apart = True

    head_keys = {"level_norm": "MLP_NORM"}

    @configurable
    def __init__(self, *, in_channels: Sequence[int], channels: int, norm: str, level_norm: bool) -> None:
        super().__init__()
        self.out_channels = channels * len(in_channels)
        if level_norm:
            self.embeds = nn.ModuleList(conv_norm_relu(width, channels, 1, norm) for width in in_channels)
        else:
            self.embeds = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
            for embed in self.embeds:
                weight_init.c2_msra_fill(embed)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps features ``(N, C_i, h_i, w_i)`` to ``(N, levels * channels, h_0, w_0)``."""
        return resize_and_concat([embed(x) for embed, x in zip(self.embeds, features, strict=True)])
