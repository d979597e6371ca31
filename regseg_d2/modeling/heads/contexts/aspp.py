"""ASPP: atrous spatial pyramid pooling, the context of DeepLabV3."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ASPP as Detectron2ASPP
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pooled_conv_norm_relu


@CONTEXT_MODULE.register()
class ASPP(Stage):
    """Detectron2's ASPP (Chen et al., "Rethinking Atrous Convolution", 2017) as a context module.

    Its image pooling covers the whole image, in training and at test, so that any size fits.

    Args:
        dilations: three dilations: 6, 12, 18 at stride 16, twice that at stride 8.
        dropout: dropout probability on the output.
        depthwise_separable: separable convolutions in the branches (DeepLabV3+).
        narrow: a 1x1 block narrows the five branches to ``out_channels``, and the image pooling has no norm,
            as in Detectron2. Without, the branches stay side by side for the projection of the head to mix,
            and the image pooling has a norm, as in mmsegmentation's DeepLabV3.
        narrow_kernel_size: odd size of that block's kernel; 3 in mmsegmentation's DeepLabV3+.
        pooling_norm: a norm in the image pooling with ``narrow`` too, as in mmsegmentation's DeepLabV3+.
    """

    head_keys = {
        "dilations": "ASPP_DILATIONS",
        "dropout": "ASPP_DROPOUT",
        "depthwise_separable": "USE_DEPTHWISE_SEPARABLE_CONV",
        "narrow": "ASPP_NARROW",
        "narrow_kernel_size": "ASPP_NARROW_KERNEL_SIZE",
        "pooling_norm": "ASPP_POOLING_NORM",
    }

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        dropout: float,
        norm: str,
        depthwise_separable: bool = False,
        narrow: bool = True,
        narrow_kernel_size: int = 1,
        pooling_norm: bool = False,
    ) -> None:
        super().__init__()
        check_head_key("ASPP_NARROW_KERNEL_SIZE", narrow_kernel_size, narrow_kernel_size in (1, 3), "1 or 3")
        self.out_channels = out_channels if narrow else 5 * out_channels
        self.aspp = Detectron2ASPP(
            in_channels,
            out_channels,
            list(dilations),
            norm=norm,
            activation=F.relu,
            dropout=dropout,
            use_depthwise_separable_conv=depthwise_separable,
        )
        if pooling_norm or not narrow:
            self.aspp.convs[-1][1] = pooled_conv_norm_relu(in_channels, out_channels, norm)
        if not narrow:
            self.aspp.project = nn.Identity()
        elif narrow_kernel_size > 1:
            self.aspp.project = conv_norm_relu(5 * out_channels, out_channels, narrow_kernel_size, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, self.out_channels, h, w)``; no side logits."""
        return self.aspp(x), {}
