"""Bilinear interpolation along one axis, as matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisPiece:
    """A run of output places of an axis and what they are made of.

    Attributes:
        inputs: the input places that they read.
        outputs: the output places.
        matrix: ``(outputs, inputs)``, the share of each input in each output; rows sum up to 1. Its
            transpose takes gradients back.
    """

    inputs: slice
    outputs: slice
    matrix: Tensor


def interpolation_pieces(
    in_size: int, out_size: int, length: int, dtype: torch.dtype, device: torch.device
) -> list[AxisPiece]:
    """Cuts the linear interpolation of an axis into pieces.

    Output i lies at input ``max((i + 0.5) * in_size / out_size - 0.5, 0)``, and reads the two inputs around
    it: ``F.interpolate(mode="bilinear", align_corners=False)``, which does that on both axes.

    Args:
        in_size: number of inputs.
        out_size: number of outputs; more or fewer than inputs.
        length: outputs of a piece; the last one may have fewer.
        dtype: type of the matrices.
        device: where they are.

    Returns:
        Pieces, by increasing place, that cover all outputs.
    """
    places = (torch.arange(out_size, dtype=torch.float64) + 0.5) * (in_size / out_size) - 0.5
    places = places.clamp(min=0)
    lower = places.long().clamp(max=in_size - 1)
    upper = (lower + 1).clamp(max=in_size - 1)
    upper_share = places - lower
    pieces = []
    for start in range(0, out_size, length):
        outputs = slice(start, min(start + length, out_size))
        inputs = slice(int(lower[outputs.start]), int(upper[outputs.stop - 1]) + 1)
        matrix = torch.zeros(outputs.stop - outputs.start, inputs.stop - inputs.start, dtype=torch.float64)
        share = upper_share[outputs].unsqueeze(1)
        matrix.scatter_(1, lower[outputs].unsqueeze(1) - inputs.start, 1 - share)
        matrix.scatter_add_(1, upper[outputs].unsqueeze(1) - inputs.start, share)
        pieces.append(AxisPiece(inputs, outputs, matrix.to(device, dtype)))
    return pieces
