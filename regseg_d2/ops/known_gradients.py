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


def with_gradient(tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Attaches a value to the tensor that it was computed from.

    Args:
        tensor: any shape.
        value: a scalar, not attached to the graph.
        gradient: of the value with respect to the tensor, of its shape.

    Returns:
        The value, attached to ``tensor``. It has no second derivative: a backward pass with
        ``create_graph`` is a ``RuntimeError``.
    """
    return _WithGradient.apply(tensor, value, gradient)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            # Without this the gradient would be a constant, and what it adds to a second derivative missing.
            raise RuntimeError(
                "a loss that carries its known gradient has no second derivative: take gradients without "
                "create_graph"
            )
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


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
