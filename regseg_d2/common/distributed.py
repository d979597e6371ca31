"""Sums over processes that gradients flow through.

Every loss of this package obeys one convention: the loss of the whole batch is the *mean over
processes* of the losses that the processes return, because that is what DistributedDataParallel's
averaging of gradients differentiates. A sum over pixels that is divided by a global count therefore
goes through :func:`global_mean`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather, all_reduce


class Processes:
    """The processes of a group; neither a copy nor a file can hold the group itself.

    Args:
        group: a group that this process is in; None is all processes, and so is what was read from a file.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        return self

    def __reduce__(self) -> tuple[type[Processes], tuple[()]]:
        return Processes, ()


_group: ContextVar[dist.ProcessGroup | None] = ContextVar("group", default=None)


@contextmanager
def sums_over(processes: Processes) -> Iterator[None]:
    """Inside the ``with`` block all functions of this module mean these processes."""
    token = _group.set(processes.group)
    try:
        yield
    finally:
        _group.reset(token)


def world_size() -> int:
    """Number of processes; 1 where no process group was begun."""
    return dist.get_world_size(_group.get()) if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all."""
    return dist.get_rank(_group.get()) if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes; differentiable.

    The gradient of the result is summed over the processes too, as every process's loss depends on
    every process's input. It is a collective: call it on every process, in the same order.

    Args:
        tensor: any shape, the same on all processes.

    Returns:
        The sum, the same on all processes. On one process: ``tensor`` itself.
    """
    if world_size() == 1:
        return tensor
    return all_reduce(tensor, group=_group.get())


def all_reduce_sum_constant(tensor: Tensor) -> Tensor:
    """Like :func:`all_reduce_sum` for counts and other constants: no gradient, nothing recorded."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total, group=_group.get())
    return total


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Divides sums of this process by counts of all processes.

    The mean over processes of the results is the mean over the whole batch, so that W processes of
    batch B have the gradients of one process of batch W x B. Where the count is zero the result is a
    zero that is still attached to the graph of ``total``.

    Args:
        total: this process's sums, any shape.
        count: this process's counts, of the same shape.

    Returns:
        ``world_size * total / sum(count)``, of the same shape.
    """
    global_count = all_reduce_sum_constant(count.to(total.dtype))
    safe_count = torch.where(global_count > 0, global_count, torch.ones_like(global_count))
    return total * (world_size() / safe_count)


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Joins the rows of all processes in the order of ranks; no gradient.

    It is a collective: call it on every process, in the same order.

    Args:
        rows: ``(M, ...)``, of the same shape and type on all processes.

    Returns:
        ``(W * M, ...)``, the same on all processes. On one process: ``rows``, detached.
    """
    if world_size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows, group=_group.get())
    return torch.cat(parts)


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """Like :func:`gather_rows`, and differentiable.

    The gradient of a row is summed over the processes, as every process's loss depends on it.

    Args:
        rows: ``(M, ...)``, of the same shape and type on all processes.

    Returns:
        ``(W * M, ...)``, the same on all processes. On one process: ``rows``.
    """
    if world_size() == 1:
        return rows
    return torch.cat(all_gather(rows, group=_group.get()))
