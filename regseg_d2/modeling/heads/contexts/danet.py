"""Position and channel attention, the context of DANet."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.projections import LinearConvBlock
from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, init_classifier, pixel_attention
from regseg_d2.ops.precision import full_precision

LAST_BLOCKS = ("ConvBlock", "LinearConvBlock")


@CONTEXT_MODULE.register()
class DualAttention(Stage):
    """Dual attention (Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019).

    A 3x3 block, attention and a 3x3 block, once with attention between pixels and once between channels; the
    sum goes on. Each of the two has a classifier of its own in training, as published. With it the head is
    complete: behind it comes the classifier, ``MODEL.SEM_SEG_HEAD.PROJECTION: ""``.

    Args:
        out_channels: channels of all blocks and of the output.
        key_channels: channels of the position attention's queries and keys.
        side_loss_weight: weight of the loss of each of the two classifiers.
        dropout: dropout probability on their inputs.
        last: last block of each branch: ``"ConvBlock"``, 3x3, or ``"LinearConvBlock"``, CAR's linear
            convolution and 1x1 block in its place, as in the published code of "DANet + CAR".
    """

    head_keys = {
        "key_channels": "DANET_KEY_CHANNELS",
        "side_loss_weight": "DANET_SIDE_LOSS_WEIGHT",
        "dropout": "DROPOUT",
        "last": "DANET_LAST",
    }

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        num_classes: int,
        side_loss_weight: float,
        dropout: float,
        norm: str,
        last: str = "ConvBlock",
    ) -> None:
        super().__init__()
        check_head_key("DANET_KEY_CHANNELS", key_channels, key_channels >= 1, "1 or more")
        check_head_key(
            "DANET_SIDE_LOSS_WEIGHT", side_loss_weight, side_loss_weight >= 0, "a number of 0 or more"
        )
        check_head_key("DANET_LAST", last, last in LAST_BLOCKS, f"one of {LAST_BLOCKS}")
        self.out_channels = out_channels
        self.side_loss_weights = {"position": side_loss_weight, "channel": side_loss_weight}
        self.position_before = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.position_attention = PositionAttention(out_channels, key_channels)
        self.position_after = _last_block(last, out_channels, norm)
        self.position_predictor = nn.Conv2d(out_channels, num_classes, kernel_size=1)
        self.channel_before = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.channel_attention = ChannelAttention()
        self.channel_after = _last_block(last, out_channels, norm)
        self.channel_predictor = nn.Conv2d(out_channels, num_classes, kernel_size=1)
        for predictor in (self.position_predictor, self.channel_predictor):
            init_classifier(predictor)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``.

        In training the side logits are ``position`` and ``channel``, ``(N, K, h, w)`` each.
        """
        position = self.position_after(self.position_attention(self.position_before(x)))
        channel = self.channel_after(self.channel_attention(self.channel_before(x)))
        side_logits = {}
        if self.training:
            side_logits = {
                "position": self.position_predictor(self.dropout(position)),
                "channel": self.channel_predictor(self.dropout(channel)),
            }
        return position + channel, side_logits


def _last_block(name: str, channels: int, norm: str) -> nn.Module:
    if name == "ConvBlock":
        return conv_norm_relu(channels, channels, 3, norm)
    return LinearConvBlock(
        in_channels=channels, linear_channels=0, out_channels=channels, kernel_size=1, norm=norm
    )


class PositionAttention(nn.Module):
    """Attention between pixels (Fu et al., section 3.2, Eq. 1 and 2).

    Query and key are as wide as the input in the paper, and have 64 channels in published code.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.key = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        # alpha of Eq. 2.
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, channels, h, w)`` to the same shape."""
        return x + self.gamma * pixel_attention(self.query(x), self.key(x), self.value(x), scale=1.0)


class ChannelAttention(nn.Module):
    """Attention between channels (Fu et al., section 3.3, Eq. 4).

    The paper's Eq. 3 weighs the channels by the softmax of their dot products. All published code takes the
    largest of them less each, which comes to the softmax of the negative dot products: a channel attends to
    those *least* like it. So do we, because that is what checkpoints are trained with.
    """

    def __init__(self) -> None:
        super().__init__()
        # beta of Eq. 4.
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to the same shape."""
        # In float32 or better: the dot products are sums over all pixels, too large for half precision.
        with torch.autocast(x.device.type, enabled=False):
            rows = x.flatten(2)
            rows = full_precision(rows)
            attended = (rows @ rows.transpose(1, 2)).neg().softmax(dim=-1) @ rows
        return x + self.gamma * attended.view_as(x).to(x.dtype)
