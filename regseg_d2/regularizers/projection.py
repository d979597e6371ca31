"""Projections of features that exist for a loss only."""

from __future__ import annotations

import abc

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from regseg_d2.modeling.layers import conv_norm_relu


class _TracelessProjection(nn.Module, abc.ABC):
    """A map of features pixel by pixel, with norms, that also takes a single pixel."""

    @abc.abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, D, h, w)``, each pixel for itself but for the norms."""

    def forward(self, x: Tensor) -> Tensor:
        """What :meth:`embed` returns; the running statistics of norms do not move."""
        single = x.numel() == x.shape[1]
        if single:
            # Batch norm refuses one value a channel: it gets the same one twice.
            x = x.expand(-1, -1, -1, 2)
        # Nothing reads running statistics of a layer that exists in training only, and they are not the
        # same on one process and on several (naiveSyncBN's variance is the biased one). The norms write
        # into copies.
        buffers = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())
        try:
            embeddings = self.embed(x)
        finally:
            for module, name, buffer in buffers:
                setattr(module, name, buffer)
        return embeddings[..., :1] if single else embeddings


class TrainingProjection(_TracelessProjection):
    """1x1 convolution, norm, ReLU, 1x1 convolution: what contrastive losses look at instead of the feature.

    Args:
        in_channels: channels of the feature, and of the layer between.
        out_channels: channels of the embedding.
        norm: name of the norm.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.hidden = conv_norm_relu(in_channels, in_channels, 1, norm)
        self.out = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        weight_init.c2_msra_fill(self.out)

    def embed(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.out(self.hidden(x))


class LinearProjection(_TracelessProjection):
    """1x1 convolution and norm.

    Args:
        in_channels: channels of the feature.
        out_channels: channels of the embedding.
        norm: name of the norm; empty is none, with a bias in the convolution instead.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size=1, bias=not norm, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_xavier_fill(self.conv)

    def embed(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.conv(x)
