"""JPU: joint pyramid upsampling, features of stride 8 without dilating the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import DepthwiseSeparableConv2d
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import FUSION
from regseg_d2.modeling.heads.stages import Fusion
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, resize_and_concat


@FUSION.register()
class JPU(Fusion):
    """Joint pyramid upsampling (Wu et al., "FastFCN", 2019, section 3.3, figure 4).

    Features of strides 8, 16 and 32 each go through a 3x3 block; side by side at stride 8 they are read by
    separable 3x3 convolutions of several dilations, whose outputs side by side are what the context module
    reads in place of a dilated backbone's last feature. The authors' code resizes with aligned corners,
    mmsegmentation and this module without.
    """

    head_keys = {"channels": "JPU_CHANNELS", "dilations": "JPU_DILATIONS"}

    @configurable
    def __init__(
        self, *, in_channels: Sequence[int], channels: int, dilations: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        check_head_key("JPU_CHANNELS", channels, channels >= 1, "1 or more")
        fine = len(dilations) > 0 and min(dilations) >= 1
        check_head_key("JPU_DILATIONS", list(dilations), fine, "numbers of 1 or more")
        self.out_channels = channels * len(dilations)
        self.convs = nn.ModuleList(conv_norm_relu(width, channels, 3, norm) for width in in_channels)
        self.branches = nn.ModuleList(
            DepthwiseSeparableConv2d(
                channels * len(in_channels),
                channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=None,
                norm2=norm,
                activation2=F.relu,
            )
            for dilation in dilations
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps features ``(N, C_i, h_i, w_i)`` to ``(N, branches * channels, h_0, w_0)``."""
        joined = resize_and_concat([conv(x) for conv, x in zip(self.convs, features, strict=True)])
        return torch.cat([branch(joined) for branch in self.branches], dim=1)
