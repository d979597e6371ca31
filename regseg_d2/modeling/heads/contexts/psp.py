"""PPM: pyramid pooling, the context of PSPNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pooled_conv_norm_relu, resize_to


@CONTEXT_MODULE.register()
class PPM(Stage):
    """Pyramid pooling module (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.2).

    The input is averaged over grids of several sizes, each average is narrowed by a 1x1 block, brought back
    to the input's size and joined to it; a 3x3 block mixes all. With it the paper's head is complete: behind
    it comes the classifier, ``MODEL.SEM_SEG_HEAD.PROJECTION: ""``. On a GPU torch has no deterministic
    gradient of the averages: it refuses to train this module with ``DETERMINISTIC: True``.

    Args:
        pool_sizes: side of each grid.
        branch_channels: channels that each average is narrowed to; 0 is ``in_channels`` divided by the
            number of grids, as in the paper.
    """

    head_keys = {"pool_sizes": "PPM_POOL_SIZES"}

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        pool_sizes: Sequence[int],
        norm: str,
        branch_channels: int = 0,
    ) -> None:
        super().__init__()
        is_fine = bool(pool_sizes) and min(pool_sizes) >= 1
        check_head_key("PPM_POOL_SIZES", list(pool_sizes), is_fine, "numbers of 1 or more")
        self.out_channels = out_channels
        self.pool_sizes = tuple(pool_sizes)
        width = branch_channels or max(in_channels // len(self.pool_sizes), 1)
        self.branches = nn.ModuleList(
            pooled_conv_norm_relu(in_channels, width, norm) for _ in self.pool_sizes
        )
        self.fuse = conv_norm_relu(in_channels + width * len(self.pool_sizes), out_channels, 3, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``; no side logits."""
        parts = [x]
        for size, branch in zip(self.pool_sizes, self.branches, strict=True):
            parts.append(resize_to(branch(F.adaptive_avg_pool2d(x, size)), x))
        return self.fuse(torch.cat(parts, dim=1)), {}
