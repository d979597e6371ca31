"""MiT: the hierarchical transformer encoder of SegFormer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regseg_d2.common.errors import check_key
from regseg_d2.modeling.backbones.timm_private import MATCH_PREV_GROUP
from regseg_d2.modeling.layers import zero_bias

# Name -> (channels of the first stage, blocks of each stage).
DEPTHS = {
    "b0": (32, (2, 2, 2, 2)),
    "b1": (64, (2, 2, 2, 2)),
    "b2": (64, (3, 4, 6, 3)),
    "b3": (64, (3, 4, 18, 3)),
    "b4": (64, (3, 8, 27, 3)),
    "b5": (64, (3, 6, 40, 3)),
}
FEATURES = ("res2", "res3", "res4", "res5")
STRIDES = (4, 8, 16, 32)
HEADS = (1, 2, 5, 8)
# Keys and values of a stage come from a grid so many times coarser: stride 32 in all stages.
REDUCTIONS = (8, 4, 2, 1)
KERNELS = (7, 3, 3, 3)
MLP_RATIO = 4
EPS = 1e-6


def to_tokens(x: Tensor) -> Tensor:
    """``(N, C, h, w)`` as ``(N, h * w, C)``."""
    return x.flatten(2).transpose(1, 2)


def to_image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, h * w, C)`` as ``(N, C, h, w)``, a channels-last view."""
    return x.transpose(1, 2).unflatten(2, size)


class PatchEmbedding(nn.Module):
    """Overlapping patches become tokens (SegFormer, section 3.1): a strided convolution and a layer norm."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Maps ``(N, C, H, W)`` to tokens ``(N, h * w, channels)`` and ``(h, w)``, sizes rounded up."""
        x = self.conv(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class EfficientAttention(nn.Module):
    """Self-attention with keys and values from a grid ``reduction`` times coarser (SegFormer, Eq. 1 and 2).

    Rows and columns that are left over when the grid does not divide the feature are no keys, as in the
    authors' code.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps tokens ``(N, L, C)`` of an image of ``size`` to ``(N, L, C)``."""
        if self.reduction == 1:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            # The three layers are one tensor, as in torch's attention; the query reads other tokens.
            channels = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            coarse = self.reduce_norm(to_tokens(self.reduce(to_image(x, size))))
            query = F.linear(x, weight[:channels], bias[:channels])
            key, value = F.linear(coarse, weight[channels:], bias[channels:]).chunk(2, dim=-1)
        x = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        return self.out(x.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """``(N, L, C)`` as ``(N, heads, L, C / heads)``."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution on tokens ``(N, L, C)``: a matrix product, with the weights of a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, L, in_channels)`` to ``(N, L, out_channels)``."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class MixFFN(nn.Module):
    """Feed-forward layer with a 3x3 depthwise convolution, in place of position codes (SegFormer, Eq. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * channels
        self.expand = PointwiseConv(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = PointwiseConv(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps tokens ``(N, L, C)`` of an image of ``size`` to ``(N, L, C)``."""
        x = self.mix(to_image(self.expand(x), size))
        return self.narrow(to_tokens(F.gelu(x)))


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a layer norm and beside a shortcut.

    ``drop_path`` is the probability that a sample skips a layer.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attention = EfficientAttention(channels, num_heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MixFFN(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps tokens ``(N, L, C)`` of an image of ``size`` to ``(N, L, C)``."""
        x = x + self.drop_path(self.attention(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class Stage(nn.Module):
    """Patch embedding, blocks and a layer norm.

    With ``recompute`` the blocks are computed a second time in the backward pass instead of keeping what is
    inside.
    """

    def __init__(self, embed: PatchEmbedding, blocks: Sequence[Block], recompute: bool) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(list(embed.norm.normalized_shape), eps=EPS)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, D, h, w)``."""
        x, size = self.embed(x)
        for block in self.blocks:
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, size, use_reentrant=False)
            else:
                x = block(x, size)
        return to_image(self.norm(x), size)


class MixVisionTransformer(Backbone):
    """MiT (Xie et al., "SegFormer", NeurIPS 2021, section 3.1), with features of stride 4, 8, 16 and 32.

    Heads, reductions and the feed-forward layers' ratio are those of the authors' code. Images have to be
    29 pixels high and wide or more; Detectron2 pads them to a multiple of 32. Two of the layer norms (behind
    a patch embedding and a reduction) have ``eps`` 1e-5 in that code and 1e-6 here and in mmsegmentation.

    Args:
        embed_dims: channels of each stage, multiples of its heads (1, 2, 5, 8).
        num_layers: blocks of each stage.
        out_features: ``res2`` to ``res5``; stages behind the last one are not built.
        in_channels: channels of the image.
        drop_path: probability that a sample skips a layer, in the last block; it grows linearly from 0.
        recompute: see :class:`Stage`.
        freeze_at: 1 freezes the first patch embedding, 2 all of ``res2``, ... 5 all of ``res5``.

    Raises:
        ConfigError: if a number or name is not what is expected.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dims: Sequence[int],
        num_layers: Sequence[int],
        out_features: Sequence[str],
        in_channels: int = 3,
        drop_path: float = 0.0,
        recompute: bool = False,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        widths, depths, names = list(embed_dims), list(num_layers), list(out_features)
        fine = len(widths) == 4 and all(w >= 1 and w % h == 0 for w, h in zip(widths, HEADS, strict=True))
        check_key("MODEL.MIT.EMBED_DIMS", widths, fine, f"[] or four multiples of {list(HEADS)}")
        fine = len(depths) == 4 and min(depths) >= 1
        check_key("MODEL.MIT.NUM_LAYERS", depths, fine, "[] or four numbers of 1 or more")
        fine = bool(names) and set(names) <= set(FEATURES)
        check_key("MODEL.MIT.OUT_FEATURES", names, fine, f"one or more of {list(FEATURES)}")
        check_key("MODEL.MIT.DROP_PATH", drop_path, 0 <= drop_path < 1, "0 or more and less than 1")
        check_key("MODEL.BACKBONE.FREEZE_AT", freeze_at, 0 <= freeze_at <= 5, "0 to 5")
        last = max(sum(num_layers) - 1, 1)
        rates = [drop_path * i / last for i in range(last + 1)]
        depth = max(FEATURES.index(name) for name in out_features) + 1
        self.stages = nn.ModuleList()
        for i in range(depth):
            first, channels = sum(num_layers[:i]), embed_dims[i]
            stride = STRIDES[i] // STRIDES[i - 1] if i else STRIDES[0]
            embed = PatchEmbedding(embed_dims[i - 1] if i else in_channels, channels, KERNELS[i], stride)
            blocks = [
                Block(channels, HEADS[i], REDUCTIONS[i], rate)
                for rate in rates[first : first + num_layers[i]]
            ]
            self.stages.append(Stage(embed, blocks, recompute))
        self._out_features = [name for name in FEATURES if name in out_features]
        self._out_feature_channels = dict(zip(FEATURES, embed_dims, strict=True))
        self._out_feature_strides = dict(zip(FEATURES, STRIDES, strict=True))
        self.apply(_initialise)
        stages: list[nn.Module] = list(self.stages)
        self._frozen = (
            [stages[0].get_submodule("embed")] if freeze_at == 1 else stages[: max(freeze_at - 1, 0)]
        )
        for module in self._frozen:
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Reads ``MODEL.MIT`` and ``MODEL.BACKBONE.FREEZE_AT``.

        Raises:
            ConfigError: if the depth is unknown.
        """
        options = cfg.MODEL.MIT
        check_key("MODEL.MIT.DEPTH", options.DEPTH, options.DEPTH in DEPTHS, f"one of {sorted(DEPTHS)}")
        width, num_layers = DEPTHS[options.DEPTH]
        return {
            "embed_dims": list(options.EMBED_DIMS) or [width * heads for heads in HEADS],
            "num_layers": list(options.NUM_LAYERS) or list(num_layers),
            "out_features": options.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "drop_path": options.DROP_PATH,
            "recompute": options.CHECKPOINT,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps an image ``(N, 3, H, W)`` to features ``(N, C, h, w)`` by name."""
        features = {}
        for name, stage in zip(FEATURES, self.stages, strict=False):
            x = stage(x)
            if name in self._out_features:
                features[name] = x
        return features

    def train(self, mode: bool = True) -> MixVisionTransformer:
        """Sets the mode; frozen parts stay as in evaluation, without drop path."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters make a layer, in the manner of timm's networks, for layer-wise learning rates.

        Args:
            coarse: a layer is a stage; otherwise a block, with the patch embedding before and the norm behind
                it, where there are. The first patch embedding is a layer of its own.
        """
        blocks = [
            (r"^stages\.(\d+)\.embed", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", MATCH_PREV_GROUP),
        ]
        return {"stem": r"^stages\.0\.embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @property
    def size_divisibility(self) -> int:
        """32: all strides, and the grids that the keys come from, divide it."""
        return STRIDES[-1]


def _initialise(module: nn.Module) -> None:
    """Random weights as the authors draw them: by fan-out for convolutions, 0.02 for matrices."""
    if isinstance(module, (nn.Linear, PointwiseConv)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        zero_bias(module)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        zero_bias(module)


@BACKBONE_REGISTRY.register()
def build_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MixVisionTransformer:
    """Builds the backbone of ``MODEL.MIT``; raises ConfigError, see :class:`MixVisionTransformer`."""
    return MixVisionTransformer(cfg, input_shape)
