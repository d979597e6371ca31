"""Batch norm over several CPU processes, exact whatever each of them holds."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regseg_d2.modeling.norms import WithActivation
from regseg_d2.regularizers.compiling import outside_of_graphs

DIMS = (0, 2, 3)


class ProcessBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose statistics are those of the pixels of all processes.

    ``nn.SyncBatchNorm`` refuses CPU tensors, and Detectron2's ``naiveSyncBN`` averages the processes'
    statistics: it takes the variance as E[x^2] - E[x]^2, in bf16 under autocast, and counts every process
    alike. Here each process hands over count, mean and sum of centered squares in float32 or better,
    which are merged (Chan et al., 1979). Gradients are those of one process with the whole batch. State
    dict, running statistics and evaluation are ``nn.BatchNorm2d``'s.
    """

    @outside_of_graphs
    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``(N, C, H, W)``; a process may have no pixel, as long as all together have two.

        Raises:
            ValueError: all processes together have fewer than two pixels a channel, in training.
        """
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        output, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        self._track(mean, variance, count)
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class ProcessBatchNormAct2d(WithActivation, ProcessBatchNorm2d):
    """The same with the dropout and activation of timm's ``BatchNormAct2d``."""


def make_exact(network: nn.Module) -> None:
    """Turns every ``naiveSyncBN`` of a network into a :class:`ProcessBatchNorm2d`, in its place.

    The layers stay the same objects with the same parameters: what else refers to them (frozen stages,
    optimizers) goes on to.
    """
    for module in network.modules():
        if isinstance(module, NaiveSyncBatchNorm):
            has_act = hasattr(module, "act")
            module.__class__ = ProcessBatchNormAct2d if has_act else ProcessBatchNorm2d


class _Normalize(torch.autograd.Function):
    """Output ``(N, C, H, W)``, mean and biased variance ``(C,)`` and count of all processes' pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        wide = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = _merged(wide)
        inverse = (variance + eps).rsqrt()
        output = (wide - _spread(mean)) * _spread(inverse)
        if weight is not None:
            output = output * _spread(weight.to(wide.dtype))
        if bias is not None:
            output = output + _spread(bias.to(wide.dtype))
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, weight, mean, inverse, count = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        normalized = (x.to(mean.dtype) - _spread(mean)) * _spread(inverse)
        own = torch.stack([wide.sum(DIMS), (wide * normalized).sum(DIMS)])
        sums = own.clone()
        dist.all_reduce(sums)
        mean_gradient, mean_product = sums / count
        scale = inverse if weight is None else inverse * weight.to(mean.dtype)
        to_x = _spread(scale) * (wide - _spread(mean_gradient) - normalized * _spread(mean_product))
        to_weight = None if weight is None else own[1].to(weight.dtype)
        return to_x.to(x.dtype), to_weight, own[0] if ctx.has_bias else None, None


def _spread(values: Tensor) -> Tensor:
    """``(C,)`` over ``(N, C, H, W)``."""
    return values.view(1, -1, 1, 1)


def _merged(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` of all processes' pixels, and how many a channel has."""
    count = x.new_tensor(float(x.numel() // x.shape[1]))
    own_mean = x.sum(DIMS) / count.clamp(min=1)
    own_squares = (x - _spread(own_mean)).square().sum(DIMS)
    own = torch.cat([own_mean, own_squares, count.view(1)])
    parts = [torch.empty_like(own) for _ in range(comm.get_world_size())]
    # Gathered, not reduced: merged in the same order, the result is the same on every process.
    dist.all_gather(parts, own)
    means, squares, counts = torch.stack(parts).split([x.shape[1], x.shape[1], 1], dim=1)
    total = counts.sum()
    if total < 2:
        raise ValueError(
            "Batch norm in training needs more than one pixel a channel over all processes; got "
            f"{int(total)} of the shape {tuple(x.shape)} here."
        )
    mean = (means * counts).sum(0) / total
    variance = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total
