"""UPerFPN: pyramid pooling and a feature pyramid, the fusion of UPerNet."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.contexts.psp import PPM
from regseg_d2.modeling.heads.registries import FUSION
from regseg_d2.modeling.heads.stages import Fusion
from regseg_d2.modeling.layers import conv_norm_relu, resize_and_concat, resize_to


@FUSION.register()
class UPerFPN(Fusion):
    """Feature pyramid with pyramid pooling on top (Xiao et al., UPerNet, ECCV 2018, section 3.1, figure 4).

    The deepest feature goes through a :class:`PPM`; every other one through a 1x1 block, after which it
    receives what is above it, upsampled bilinearly, and a 3x3 block. All levels side by side, at the finest
    size, are the output. The 3x3 block that mixes them (``fpn_bottleneck`` of mmsegmentation's ``UPerHead``,
    whose layout this is) is the projection of the head; between them stands ``CONTEXT: FCN`` with
    ``FCN_NUM_CONVS: 0``. The paper's heads for objects, parts, materials and scenes are not here.
    """

    head_keys = {"pool_sizes": "PPM_POOL_SIZES"}

    @configurable
    def __init__(
        self, *, in_channels: Sequence[int], channels: int, pool_sizes: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        self.out_channels = channels * len(in_channels)
        self.ppm = PPM(
            in_channels=in_channels[-1],
            out_channels=channels,
            pool_sizes=pool_sizes,
            norm=norm,
            branch_channels=channels,
        )
        self.laterals = nn.ModuleList(conv_norm_relu(width, channels, 1, norm) for width in in_channels[:-1])
        self.smooths = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in in_channels[:-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps features ``(N, C_i, h_i, w_i)`` to ``(N, levels * channels, h_0, w_0)``."""
        top, _ = self.ppm(features[-1])
        levels = [top]
        for lateral, smooth, x in zip(self.laterals[::-1], self.smooths[::-1], features[-2::-1], strict=True):
            x = lateral(x)
            top = x + resize_to(top, x)
            levels.append(smooth(top))
        return resize_and_concat(levels[::-1])
