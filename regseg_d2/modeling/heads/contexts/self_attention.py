"""The self-attention that CAR is tried on."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pixel_attention, zero_bias

#: How query and key are related, see :class:`SelfAttention`.
QUERY_KEY = ("shared", "shared_start", "separate")


@CONTEXT_MODULE.register()
class SelfAttention(Stage):
    """A 3x3 block and dot-product attention with a residual (the "Self-Attention" of CAR's tables).

    The paper (Huang et al., "CAR", ECCV 2022, section 4.2.1) names the non-local network and gives no
    details; these are from its published code: narrow queries and keys, values as wide as the block, no
    scale, no output convolution, no factor on the residual. The head goes on with a projection, 3x3 in the
    baseline and CAR's linear one with it; ``CONCAT_INPUT`` is False.

    Args:
        out_channels: channels of the block, of the values and of the output.
        key_channels: channels of query and key.
        query_key: ``shared`` is one convolution for both: the attention is symmetric before its softmax.
            ``shared_start`` is two that start from the same values and then go their ways, which is what the
            published code does. ``separate`` is two.
    """

    head_keys = {"key_channels": "ATTENTION_KEY_CHANNELS", "query_key": "ATTENTION_QUERY_KEY"}

    @configurable
    def __init__(
        self, *, in_channels: int, out_channels: int, key_channels: int, query_key: str, norm: str
    ) -> None:
        super().__init__()
        check_head_key("ATTENTION_KEY_CHANNELS", key_channels, key_channels >= 1, "1 or more")
        check_head_key("ATTENTION_QUERY_KEY", query_key, query_key in QUERY_KEY, f"one of {QUERY_KEY}")
        self.out_channels = out_channels
        self.before = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.key = _linear(out_channels, key_channels)
        # None rather than the key's convolution a second time: each tensor is once in the checkpoint.
        self.query = None if query_key == "shared" else _linear(out_channels, key_channels)
        if self.query is not None and query_key == "shared_start":
            self.query.load_state_dict(self.key.state_dict())
        self.value = _linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``; no side logits."""
        x = self.before(x)
        key = self.key(x)
        query = key if self.query is None else self.query(x)
        return x + pixel_attention(query, key, self.value(x), scale=1.0), {}


def _linear(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts as Keras starts it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    zero_bias(conv)
    return conv
