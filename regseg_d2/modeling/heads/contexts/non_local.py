"""Non-local block: every pixel attends to all others."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pixel_attention, zero_bias
from regseg_d2.modeling.norms import get_norm


class ConvAttentionConv(Stage):
    """A 3x3 block, attention, a 3x3 block: the frame of the heads of the non-local network and of CCNet.

    Both publish it with ``CONCAT_INPUT: True`` and a projection of the same width behind it.

    Args:
        out_channels: channels of both blocks, and of the attention.
        attention: module ``(N, out_channels, h, w) -> (N, out_channels, h, w)``.
        recurrence: how often the attention is applied, with the same weights.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, attention: nn.Module, norm: str, recurrence: int = 1
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.recurrence = recurrence
        self.before = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.attention = attention
        self.after = conv_norm_relu(out_channels, out_channels, 3, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``; no side logits."""
        x = self.before(x)
        for _ in range(self.recurrence):
            x = self.attention(x)
        return self.after(x), {}


@CONTEXT_MODULE.register()
class NonLocal(ConvAttentionConv):
    """Non-local network's context (Wang et al., "Non-local Neural Networks", CVPR 2018).

    The head is mmsegmentation's, so that its checkpoints fit: the paper is about video and has no head for
    segmentation.

    Args:
        reduction: how many times fewer channels queries, keys and values have.
        use_scale: see :class:`NonLocalBlock`.
    """

    head_keys = {"reduction": "ATTENTION_REDUCTION", "use_scale": "ATTENTION_USE_SCALE"}

    @configurable
    def __init__(
        self, *, in_channels: int, out_channels: int, reduction: int, use_scale: bool, norm: str
    ) -> None:
        check_head_key("ATTENTION_REDUCTION", reduction, reduction >= 1, "1 or more")
        attention = NonLocalBlock(
            channels=out_channels,
            inner_channels=max(out_channels // reduction, 1),
            use_scale=use_scale,
            norm=norm,
        )
        super().__init__(in_channels=in_channels, out_channels=out_channels, attention=attention, norm=norm)


class NonLocalBlock(nn.Module):
    """Embedded Gaussian attention with a residual (Wang et al., Eq. 1, 3 and 6).

    ``z_i = x_i + W sum_j softmax_j(query_i . key_j) value_j``. As in the paper a norm follows W, which starts
    at zero, so that the block starts as the identity. The paper does not scale the dot products.

    Args:
        inner_channels: channels of query, key and value.
        use_scale: divide the dot products by the root of ``inner_channels`` (Vaswani et al., 2017).
    """

    def __init__(self, *, channels: int, inner_channels: int, use_scale: bool, norm: str) -> None:
        super().__init__()
        self.scale = inner_channels**-0.5 if use_scale else 1.0
        self.query = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.key = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, inner_channels, kernel_size=1)
        for conv in (self.query, self.key, self.value):
            nn.init.normal_(conv.weight, std=0.01)
            zero_bias(conv)
        self.out = Conv2d(
            inner_channels, channels, kernel_size=1, bias=not norm, norm=get_norm(norm, channels)
        )
        # Without a norm, or with a frozen one, which learns nothing, the convolution is what starts at zero.
        learnt_norm = self.out.norm is not None and isinstance(self.out.norm.weight, nn.Parameter)
        nn.init.zeros_(self.out.norm.weight if learnt_norm else self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, channels, h, w)`` to the same shape."""
        return x + self.out(pixel_attention(self.query(x), self.key(x), self.value(x), self.scale))
