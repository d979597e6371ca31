"""Losses whose gradients were computed together with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_row_gradients(rows: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
    """Attaches losses to the rows that they are of.

    Where a loss depends on its own row alone, its gradient is C numbers: taking it at once keeps nothing
    of the size of what the rows were compared with, which may be written to before the backward pass.

    Args:
        rows: ``(R, C)``.
        losses: ``(R,)``, of each row, not attached to the graph.
        gradients: ``(R, C)``, of each loss with respect to its row.

    Returns:
        The losses ``(R,)``, attached to ``rows``. They have no second derivative.
    """
    return _WithRowGradients.apply(rows, losses, gradients)


class _WithRowGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return losses.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return upstream.unsqueeze(1) * gradients, None, None
