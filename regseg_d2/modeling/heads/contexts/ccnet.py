"""Criss-cross attention, the context of CCNet."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.contexts.non_local import ConvAttentionConv
from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.layers import check_head_key

# How many times fewer channels queries and keys have: the published code's, the paper only says fewer.
_KEY_REDUCTION = 8


@CONTEXT_MODULE.register()
class CrissCross(ConvAttentionConv):
    """Recurrent criss-cross attention (Huang et al., "CCNet", ICCV 2019, sections 3.2 and 3.3).

    One pass takes a pixel's row and column in; two passes, with the same weights, the whole image.

    ``recurrence`` is the number of passes R.
    """

    head_keys = {"recurrence": "CCNET_RECURRENCE"}

    @configurable
    def __init__(self, *, in_channels: int, out_channels: int, recurrence: int, norm: str) -> None:
        check_head_key("CCNET_RECURRENCE", recurrence, recurrence >= 1, "1 or more")
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            attention=CrissCrossAttention(out_channels),
            norm=norm,
            recurrence=recurrence,
        )


class CrissCrossAttention(nn.Module):
    """Attention of each pixel to its row and its column, with a residual (Huang et al., Eq. 1 and 2).

    As published, the attended values have a factor that starts at zero, which the paper does not mention.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        key_channels = max(channels // _KEY_REDUCTION, 1)
        self.query = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.key = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, channels, h, w)`` to the same shape."""
        return x + self.gamma * criss_cross(self.query(x), self.key(x), self.value(x))


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention under a mask that leaves each pixel its row and column, at the cost of these alone.

    The softmax is one over the h + w - 1 pixels: the pixel itself, which is in both, counts once.

    Query and key are ``(N, c, h, w)``, values and result ``(N, C, h, w)``.
    """
    height, width = query.shape[-2:]
    # (N, h, w, c) for the rows, (N, w, h, c) for the columns.
    query, key, value = (x.permute(0, 2, 3, 1).contiguous() for x in (query, key, value))
    column = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
    column = column.masked_fill(torch.eye(height, dtype=torch.bool, device=column.device), float("-inf"))
    row = query @ key.transpose(2, 3)
    weights = torch.cat([column.transpose(1, 2), row], dim=-1).softmax(dim=-1)
    column, row = weights.split([height, width], dim=-1)
    attended = row @ value + (column.transpose(1, 2) @ value.transpose(1, 2)).transpose(1, 2)
    return attended.permute(0, 3, 1, 2)
