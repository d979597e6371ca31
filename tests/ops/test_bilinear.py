"""Interpolation matrices against torch's own interpolation."""

import math

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops.bilinear import interpolation_pieces


@pytest.mark.parametrize("length", [1, 4, 100])
@pytest.mark.parametrize(("in_size", "out_size"), [(4, 32), (5, 13), (7, 3), (6, 6), (1, 5), (9, 1)])
def test_pieces_are_linear_interpolation(in_size, out_size, length):
    values = torch.randn(in_size, dtype=torch.float64)
    pieces = interpolation_pieces(in_size, out_size, length, torch.float64, torch.device("cpu"))
    result = torch.cat([piece.matrix @ values[piece.inputs] for piece in pieces])
    expected = F.interpolate(values[None, None], size=out_size, mode="linear", align_corners=False)[0, 0]
    torch.testing.assert_close(result, expected)
    assert [piece.outputs.start for piece in pieces] == list(range(0, out_size, length))
    assert pieces[-1].outputs.stop == out_size
    # The inputs between the first and the last output's, and little else.
    for piece in pieces:
        assert piece.matrix[0, 0] > 0
        assert piece.matrix.shape[1] <= math.ceil((len(piece.matrix) - 1) * in_size / out_size) + 2
