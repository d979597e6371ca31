"""SemanticFPN: a feature pyramid whose levels are brought to one size and added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import FUSION
from regseg_d2.modeling.heads.stages import Fusion
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, resize_to


@FUSION.register()
class SemanticFPN(Fusion):
    """Feature pyramid with a semantic branch (Kirillov et al., "Panoptic FPN", CVPR 2019).

    The pyramid (Lin et al., CVPR 2017): a 1x1 convolution of every feature receives what is above it,
    upsampled to the nearest, and a 3x3 convolution follows; neither has a norm. The branch (section 3.1,
    figure 3): each level goes through 3x3 blocks, each with a bilinear upsampling by 2 behind it, until it
    has the stride of the finest level, which has one block alone; the sum of the levels is the output. This
    is mmsegmentation's ``FPN`` and ``FPNHead``. Between it and the classifier stand ``CONTEXT: FCN`` with
    ``FCN_NUM_CONVS: 0`` and no projection.

    The paper has group norm in the blocks (``NORM: GN``). Detectron2's FPN with its ``SemSegFPNHead`` is the
    same function where sides are multiples of the largest stride.

    ``pyramid_channels`` are those of the pyramid's levels, ``channels`` those of the blocks and the output.
    """

    head_keys = {"pyramid_channels": "FPN_CHANNELS"}

    @configurable
    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        strides: Sequence[int],
        pyramid_channels: int,
        channels: int,
        norm: str,
    ) -> None:
        super().__init__()
        check_head_key("FPN_CHANNELS", pyramid_channels, pyramid_channels >= 1, "1 or more")
        check_head_key("CONTEXT_CHANNELS", channels, channels >= 1, "1 or more")
        self.out_channels = channels
        self.laterals = nn.ModuleList(nn.Conv2d(width, pyramid_channels, 1) for width in in_channels)
        self.smooths = nn.ModuleList(
            nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1) for _ in in_channels
        )
        for conv in (*self.laterals, *self.smooths):
            weight_init.c2_xavier_fill(conv)
        self.scales = nn.ModuleList()
        for stride in strides:
            num_blocks = max(1, int(math.log2(stride / strides[0])))
            widths = [pyramid_channels] + [channels] * num_blocks
            self.scales.append(
                nn.ModuleList(conv_norm_relu(a, b, 3, norm) for a, b in zip(widths, widths[1:], strict=False))
            )
        self.needs_upsampling = [stride != strides[0] for stride in strides]

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Reads ``head_keys``, and takes the strides of the features."""
        return {**super().from_config(cfg, shapes), "strides": [shape.stride for shape in shapes]}

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps features ``(N, C_i, h_i, w_i)`` to ``(N, channels, h_0, w_0)``."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:])
        scaled = [
            self._scale(i, smooth(x)) for i, (smooth, x) in enumerate(zip(self.smooths, levels, strict=True))
        ]
        total = scaled[0]
        for x in scaled[1:]:
            total = total + resize_to(x, total)
        return total

    def _scale(self, index: int, x: Tensor) -> Tensor:
        for block in self.scales[index].children():
            x = block(x)
            if self.needs_upsampling[index]:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x
