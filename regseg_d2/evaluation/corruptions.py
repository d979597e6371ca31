"""Corrupted images, to see what a network makes of them.

The kinds and strengths are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019) of which torchvision has
the operation; its Gaussian blur stands for the benchmark's Gaussian blur, whose severities it takes. The
benchmark's numbers are for images of 224 x 224; larger images suffer less from the same blur.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from regseg_d2.common.errors import ConfigError

SEVERITIES = (1, 3, 5)


def _gaussian_noise(image: Tensor, sigma: float) -> Tensor:
    noisy = T.gaussian_noise(image.float() / 255, mean=0.0, sigma=sigma, clip=True)
    return (noisy * 255).round().to(torch.uint8)


def _gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    return T.gaussian_blur(image, kernel_size=2 * round(4 * sigma) + 1, sigma=sigma)


def _brightness(image: Tensor, shift: float) -> Tensor:
    # Added to the value channel of HSV: all three channels times (value + shift) / value.
    scaled = image.float() / 255
    value = scaled.amax(dim=0, keepdim=True)
    grown = (value + shift).clamp(max=1.0)
    lit = torch.where(value > 0, scaled * (grown / value.clamp(min=1e-8)), grown)
    return (lit * 255).round().to(torch.uint8)


def _contrast(image: Tensor, factor: float) -> Tensor:
    scaled = image.float() / 255
    mean = scaled.mean(dim=(1, 2), keepdim=True)
    return (((scaled - mean) * factor + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def _jpeg(image: Tensor, quality: float) -> Tensor:
    return T.jpeg(image, quality=int(quality))


#: Operation, and its strength at severities 1 to 5.
KINDS: Mapping[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "gaussian_blur": (_gaussian_blur, (1.0, 2.0, 3.0, 4.0, 6.0)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}


def corrupt(image: Tensor, kind: str, severity: int, key: str) -> Tensor:
    """Corrupts an image; the same arguments give the same pixels.

    Args:
        image: ``(3, H, W)`` uint8 on the CPU, RGB or BGR.
        kind: a name of :data:`KINDS`.
        severity: 1 to 5.
        key: what noise is drawn from besides kind and severity, such as the image's file name.

    Returns:
        ``(3, H, W)`` uint8.

    Raises:
        ConfigError: there is no such kind or severity.
    """
    if kind not in KINDS or not 1 <= severity <= 5:
        raise ConfigError(
            f"Corruption {kind!r} of severity {severity}: expected one of {tuple(KINDS)} and 1 to 5."
        )
    operation, strengths = KINDS[kind]
    # torch's noise comes from the global generator, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{key}/{kind}/{severity}".encode()))
        return operation(image, strengths[severity - 1])
