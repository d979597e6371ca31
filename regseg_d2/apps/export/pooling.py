"""Adaptive average pooling that exporters can write for any size of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PoolingAsProducts(TorchFunctionMode):
    """While it is active, ``F.adaptive_avg_pool2d`` to a grid is two products of matrices.

    torch's own has no form in ONNX, and its graph keeps which pixels belong to which cell of the grid at one
    size. The numbers differ by rounding.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.adaptive_avg_pool2d:
            return average_pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def average_pool(input: Tensor, output_size: Any) -> Tensor:
    """``F.adaptive_avg_pool2d`` of ``(N, C, H, W)``: cell i has rows floor(iH/n) to ceil((i+1)H/n) - 1."""
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    height, width = input.shape[-2:]
    rows = _averages(sizes[0] or height, height, input)
    columns = _averages(sizes[1] or width, width, input)
    return rows @ input @ columns.transpose(0, 1)


def _averages(cells: Any, length: Any, like: Tensor) -> Tensor:
    """The matrix ``(cells, length)`` that averages over the cells of an axis."""
    cell = torch.arange(cells, device=like.device).unsqueeze(1)
    place = torch.arange(length, device=like.device).unsqueeze(0)
    inside = (place >= cell * length // cells) & (place < ((cell + 1) * length + cells - 1) // cells)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
