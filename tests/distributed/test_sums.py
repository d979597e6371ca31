"""Sums over processes, forward and backward, against numbers by hand."""

import torch
from detectron2.utils import comm

from regseg_d2.distributed import all_reduce_sum, all_reduce_sum_constant, global_mean
from tests.distributed.launching import run_processes


def sums():
    rank = comm.get_rank()
    x = torch.tensor([1.0 + rank, 10.0], requires_grad=True)
    total = all_reduce_sum(x)
    (total.square() * (rank + 1)).sum().backward()
    constant = all_reduce_sum_constant(torch.tensor([rank + 1]))
    means = global_mean(torch.tensor([6.0, 0.0]) * rank, torch.tensor([2.0 + rank, 0.0]))
    return total.detach(), x.grad, constant, means


def test_two_processes(tmp_path):
    for rank, (total, gradient, constant, means) in enumerate(run_processes(sums, 2, tmp_path)):
        torch.testing.assert_close(total, torch.tensor([3.0, 20.0]))
        # d/dx of (1 + 2) total^2.
        torch.testing.assert_close(gradient, torch.tensor([18.0, 120.0]))
        assert constant.item() == 3
        torch.testing.assert_close(means, torch.tensor([2 * 6.0 * rank / 5, 0.0]))


def test_one_process():
    x = torch.tensor([4.0], requires_grad=True)
    assert all_reduce_sum(x) is x
    assert global_mean(x, torch.tensor([2.0])).item() == 2.0
    assert global_mean(x * 0, torch.tensor([0.0])).requires_grad
