"""The types that losses, and what is as touchy, are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def loss_precision(dtype: torch.dtype) -> torch.dtype:
    """The type that losses are computed in: float32, or float64 where the model is in float64."""
    return dtype if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is that: half precision loses the small differences."""
    return x.to(loss_precision(x.dtype))
