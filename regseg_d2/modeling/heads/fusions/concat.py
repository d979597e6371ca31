"""Concat: all features side by side, as HRNetV2's head reads them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import configurable
from torch import Tensor

from regseg_d2.modeling.heads.registries import FUSION
from regseg_d2.modeling.heads.stages import Fusion
from regseg_d2.modeling.layers import resize_and_concat


@FUSION.register()
class Concat(Fusion):
    """Upsamples all features to the first one's size and concatenates them.

    The input of HRNetV2's head (Sun et al., "High-Resolution Representations for Labeling Pixels and
    Regions", 2019, section 3.2; mmsegmentation's ``resize_concat``). It has no parameters: the 1x1 block of
    that head is ``CONTEXT: FCN`` with ``FCN_NUM_CONVS: 1``, ``FCN_KERNEL_SIZE: 1`` and ``CONTEXT_CHANNELS``
    the sum of the branches' widths, without a projection.
    """

    #: The output is the encoder's stages side by side; nothing mixes them yet.
    keeps_levels_apart = True

    @configurable
    def __init__(self, *, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = sum(in_channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps features ``(N, C_i, h_i, w_i)`` to ``(N, sum of C_i, h_0, w_0)``."""
        return resize_and_concat(features)
