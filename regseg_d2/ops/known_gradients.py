"""Losses whose gradients were computed together with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_gradient(tensor: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
    """Attaches values to the tensor that they were computed from.

    Where a value depends on its own part of a tensor alone, its gradient is as small as that part: taking
    it at once keeps nothing of what the part was compared with, which may be written to before the backward
    pass.

    Args:
        tensor: ``(..., *)``.
        values: ``(...)``, each of its own part ``(*)`` of the tensor, not attached to the graph: a scalar of
            the whole tensor, or ``(R,)`` of the rows ``(R, C)``.
        gradients: ``(..., *)``, of each value with respect to its part.

    Returns:
        The values, attached to ``tensor``. They have no second derivative: a backward pass with
        ``create_graph`` is a ``RuntimeError``.
    """
    return _WithGradient.apply(tensor, values, gradients)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            # Without this the gradient would be a constant, and what it adds to a second derivative missing.
            raise RuntimeError(
                "a loss that carries its known gradient has no second derivative: take gradients without "
                "create_graph"
            )
        (gradients,) = ctx.saved_tensors
        parts = (1,) * (gradients.ndim - upstream.ndim)
        return upstream.view(*upstream.shape, *parts) * gradients, None, None
