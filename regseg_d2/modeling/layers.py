"""Layers that several stages of a head share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d
from torch import Tensor, nn

from regseg_d2.common.errors import check_key
from regseg_d2.modeling.norms import get_norm


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution of an odd kernel that keeps the size, a norm and a ReLU; without a norm it has a bias."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def separable_conv_norm_relu(in_channels: int, out_channels: int, norm: str) -> DepthwiseSeparableConv2d:
    """A 3x3 convolution of each channel and a 1x1 convolution of all, each with a norm and a ReLU."""
    return DepthwiseSeparableConv2d(
        in_channels, out_channels, norm1=norm, activation1=F.relu, norm2=norm, activation2=F.relu
    )


def zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Starts a layer with a bias of zero, where it has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_classifier(predictor: nn.Conv2d | nn.Linear) -> None:
    """Starts a layer that gives logits with small weights, and without a preference for any class."""
    nn.init.normal_(predictor.weight, std=0.01)
    zero_bias(predictor)


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x (..., H, W)`` padded with zeros at the right and below to a height and width, without gaps."""
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2])).contiguous()


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x (N, C, h, w)`` at another height and width, bilinearly; as it is where it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def resize_to(x: Tensor, reference: Tensor) -> Tensor:
    """``x`` at the height and width of ``reference``, see :func:`resize`."""
    return resize(x, reference.shape[-2:])


def resize_and_concat(features: Sequence[Tensor]) -> Tensor:
    """All features ``(N, C_i, h_i, w_i)`` at the size of the first: ``(N, sum of C_i, h_0, w_0)``."""
    return torch.cat([resize_to(x, features[0]) for x in features], dim=1)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm behind a pooling that may leave one value a channel: a 1x1 grid, in a batch of one image.

    One value has no variance, and torch's batch norm refuses it. Such a batch is normalised with the running
    statistics, as in evaluation, and does not change them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``(N, C, H, W)``."""
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def pooled_conv_norm_relu(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    """A 1x1 :func:`conv_norm_relu` for features pooled to a few values, or to one."""
    conv = conv_norm_relu(in_channels, out_channels, 1, norm)
    if norm == "BN":
        conv.norm = PooledBatchNorm2d(out_channels)
    return conv


def pixel_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dot-product attention of the pixels of one map to those of another.

    Args:
        query: ``(N, c, h, w)``.
        key: ``(N, c, h', w')``.
        value: ``(N, C, h', w')``.
        scale: factor of the dot products before the softmax over the pixels of ``key``.

    Returns:
        ``(N, C, h, w)``.
    """
    # Torch's fused kernels, which never hold the (h w) x (h' w') weights, take a number of heads (one here)
    # and rows without gaps.
    q, k, v = (x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for x in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attended.squeeze(1).transpose(1, 2).unflatten(2, query.shape[-2:])


def check_head_key(key: str, value: Any, fine: bool, expected: str) -> None:
    """Raises ConfigError where a value of a key of ``MODEL.SEM_SEG_HEAD`` is not fine, with what would be."""
    check_key(f"MODEL.SEM_SEG_HEAD.{key}", value, fine, expected)
