"""Four features of one stride become a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class RescaledFeatures(nn.Module):
    """Brings the four features of a plain vision transformer to strides 4, 8, 16 and 32 (for patches of 16).

    As Bao et al. give them to UPerNet ("BEiT", ICLR 2022, published code; the same in MAE's and in
    mmsegmentation's ``Feature2Pyramid``): two transposed convolutions of kernel and stride 2 with a batch
    norm and a GELU in between, one transposed convolution, nothing, max pooling over 2x2. The pooling rounds
    sizes up, so that the last row and column of an odd size are not lost; theirs rounds down.

    ``channels`` are those of each feature, before and behind.
    """

    #: How many times as large each feature becomes.
    factors: ClassVar[tuple[float, ...]] = (4, 2, 1, 0.5)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(_double(channels), nn.BatchNorm2d(channels), nn.GELU(), _double(channels)),
                _double(channels),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    @classmethod
    def strides(cls, stride: int) -> list[int | float]:
        """Strides of the four behind features of ``stride``: whole numbers where they are (not for 14)."""
        strides = [stride / factor for factor in cls.factors]
        return [int(s) if s.is_integer() else s for s in strides]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps four ``(N, C, h, w)`` to ``(N, C, 4h, 4w)``, ``2h``, ``h`` and ``h / 2``, rounded up."""
        return [scale(feature) for scale, feature in zip(self.scales, features, strict=True)]


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
