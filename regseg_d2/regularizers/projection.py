"""Projections of features that exist for a loss only."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

#: Makes the norm of so many channels; or None, where there shall be none.
NormFactory = Callable[[int], nn.Module | None]


class _PixelConvolution(nn.Conv2d):
    """A 1x1 convolution, with a norm, or with a bias where there is none."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory) -> None:
        layer = norm(out_channels)
        super().__init__(in_channels, out_channels, kernel_size=1, bias=layer is None)
        self.norm = layer
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, out_channels, h, w)``."""
        x = super().forward(input)
        return x if self.norm is None else self.norm(x)


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
        norm: makes the norm; where it gives None, the first convolution has a bias instead.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.hidden = _PixelConvolution(in_channels, in_channels, norm)
        nn.init.kaiming_normal_(self.hidden.weight, mode="fan_out", nonlinearity="relu")
        self.out = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        nn.init.kaiming_normal_(self.out.weight, mode="fan_out", nonlinearity="relu")
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.out(F.relu(self.hidden(x)))


class LinearProjection(_TracelessProjection):
    """1x1 convolution and norm.

    Args:
        in_channels: channels of the feature.
        out_channels: channels of the embedding.
        norm: makes the norm; where it gives None, the convolution has a bias instead.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv = _PixelConvolution(in_channels, out_channels, norm)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def embed(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.conv(x)
