"""Channelized axial attention, the context of CAA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pooled_conv_norm_relu

# TensorFlow's default, which the published code takes.
_LEAKY_SLOPE = 0.2


@CONTEXT_MODULE.register()
class ChannelizedAxialAttention(Stage):
    """Channelized axial attention (Huang et al., AAAI 2022; CAR's tables call it CAA).

    What is built, in the order of the data:

    1. a 3x3 block to ``out_channels``;
    2. two 1x1 blocks to ``key_channels``, one an axis, each the query *and* the key of its axis; a 1x1 block
       for the values; dot products without a scale;
    3. attention along the columns on the values, then along the rows on the result, no residual. Each is
       channelized: before the weighted values of a pixel are summed up, each channel of them is multiplied by
       a gate, see :class:`AxialAttention`;
    4. a 1x1 block, and beside it the image's mean of the *input* through a 1x1 block. Side by side they have
       2 ``out_channels``.

    The head goes on with a 1x1 projection to 256 channels (``CONVS_DIM: 256``,
    ``PROJECTION_KERNEL_SIZE: 1``); with CAR the linear convolution before it has 256, too
    (``LINEAR_CHANNELS: 256``). ``CONTEXT_CHANNELS`` is 512 as published.

    Where this comes from: all of the above, the layers' order and widths, and the gates with five hidden
    layers and a leaky ReLU, is what the authors' TensorFlow code for CAA and for CAR says. Uncertain: the
    paper itself was not at hand; as remembered, its equations of the channelization average over the same
    pixels and divide by height times width, too, but print a gate of two layers with a ReLU; which of the two
    its tables are made with is not known. No outputs were compared with the original's, and its checkpoints
    cannot be converted. Its auxiliary loss reads the same feature as the head: that is
    ``AUX.IN_FEATURE: fused`` here.

    Args:
        out_channels: channels of the values and of each of the two parts of the output.
        key_channels: channels of queries and keys.
        channel_gates: with the gates; False is plain axial attention, the baseline of the paper's ablation.
        hidden_layers: hidden layers of a gate.
        hidden_ratio: their width over that of the values.
        image_level: with the image's mean.
    """

    head_keys = {
        "key_channels": "CAA_KEY_CHANNELS",
        "channel_gates": "CAA_CHANNEL_GATES",
        "hidden_layers": "CAA_HIDDEN_LAYERS",
        "hidden_ratio": "CAA_HIDDEN_RATIO",
        "image_level": "CAA_IMAGE_LEVEL",
    }

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        channel_gates: bool,
        hidden_layers: int,
        hidden_ratio: float,
        image_level: bool,
        norm: str,
    ) -> None:
        super().__init__()
        check_head_key("CAA_KEY_CHANNELS", key_channels, key_channels >= 1, "1 or more")
        check_head_key("CAA_HIDDEN_LAYERS", hidden_layers, hidden_layers >= 0, "0 or more")
        check_head_key("CAA_HIDDEN_RATIO", hidden_ratio, hidden_ratio > 0, "a number above 0")
        self.out_channels = out_channels * (2 if image_level else 1)
        self.before = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.column_key = conv_norm_relu(out_channels, key_channels, 1, norm)
        self.row_key = conv_norm_relu(out_channels, key_channels, 1, norm)
        self.value = conv_norm_relu(out_channels, out_channels, 1, norm)
        hidden_channels = max(int(out_channels * hidden_ratio), 1)
        gates = (
            [ChannelGate(out_channels, hidden_channels, hidden_layers) for _ in range(2)]
            if channel_gates
            else [None, None]
        )
        self.column_attention = AxialAttention(gates[0])
        self.row_attention = AxialAttention(gates[1])
        self.after = conv_norm_relu(out_channels, out_channels, 1, norm)
        self.image_level = pooled_conv_norm_relu(in_channels, out_channels, norm) if image_level else None

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, self.out_channels, h, w)``; no side logits."""
        entry = self.before(x)
        # (N, w, h, C) for the columns, (N, h, w, C) for the rows.
        value = self.value(entry).permute(0, 3, 2, 1)
        value = self.column_attention(self.column_key(entry).permute(0, 3, 2, 1), value).transpose(1, 2)
        value = self.row_attention(self.row_key(entry).permute(0, 2, 3, 1), value)
        out = self.after(value.permute(0, 3, 1, 2))
        if self.image_level is not None:
            image = self.image_level(x.mean(dim=(2, 3), keepdim=True))
            out = torch.cat([out, image.expand(-1, -1, *x.shape[-2:])], dim=1)
        return out, {}


class AxialAttention(nn.Module):
    """Attention within the lines of an image, its columns or its rows, channelized or plain.

    With A the softmax of the dot products, place p of line l takes from place q of that line
    ``a[l, p, q, c] = A[l, p, q] value[l, q, c]``. The gate of p, one number a channel, is made of the mean of
    a over all lines and all q; the result is the sum over q of gate times a. The gate is the same for all q,
    so it can be taken out of that sum: it multiplies the result of plain attention, and the mean that it is
    made of is the mean of that result over the lines, divided by the number of q. That is exact, and a, which
    the published code computes in groups of p to bound its memory, need not exist.

    The gate is a module ``(N, P, C) -> (N, P, C)``, or None for plain attention.
    """

    def __init__(self, gate: nn.Module | None) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, key: Tensor, value: Tensor) -> Tensor:
        """Maps keys ``(N, L, P, c)``, queries too, and values ``(N, L, P, C)`` to ``(N, L, P, C)``.

        There are L lines of P places.
        """
        attended = F.scaled_dot_product_attention(key, key, value, scale=1.0)
        if self.gate is None:
            return attended
        means = attended.mean(dim=1) / attended.shape[2]
        return attended * self.gate(means).unsqueeze(1)


class ChannelGate(nn.Module):
    """A perceptron of ``hidden_layers`` hidden layers with sigmoids at its end, without biases."""

    def __init__(self, channels: int, hidden_channels: int, hidden_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(channels if not layers else hidden_channels, hidden_channels, bias=False)]
            layers += [nn.LeakyReLU(_LEAKY_SLOPE)]
        layers += [nn.Linear(hidden_channels if layers else channels, channels, bias=False), nn.Sigmoid()]
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, P, channels)`` to gates between 0 and 1 of the same shape."""
        return self.layers(x)
