"""Sums over processes, forward and backward, against numbers by hand."""

import torch
from detectron2.utils import comm

from regseg_d2.common.distributed import all_reduce_sum, all_reduce_sum_constant, gather_rows, global_mean
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


def gathers():
    rank = comm.get_rank()
    rows = torch.arange(6.0).view(3, 2) + 10 * rank
    gathered = {dtype: gather_rows(rows.to(dtype)) for dtype in GATHERED}
    # Not contiguous, attached to a graph, without a row, and without channels.
    gathered["turned"] = gather_rows(rows.t().requires_grad_())
    gathered["empty"] = gather_rows(rows[:0])
    gathered["classes"] = gather_rows(torch.tensor([rank, -1, 2]))
    rows.zero_()
    return gathered


GATHERED = (torch.float32, torch.float64, torch.float16, torch.long)


def test_rows_come_in_the_order_of_ranks_and_are_the_same_everywhere(tmp_path):
    results = run_processes(gathers, 3, tmp_path)
    expected = torch.cat([torch.arange(6.0).view(3, 2) + 10 * rank for rank in range(3)])
    for result in results:
        for dtype in GATHERED:
            assert result[dtype].dtype == dtype
            assert torch.equal(result[dtype], expected.to(dtype))
        turned = torch.cat([(torch.arange(6.0).view(3, 2) + 10 * rank).t() for rank in range(3)])
        assert torch.equal(result["turned"], turned)
        assert not result["turned"].requires_grad
        assert result["empty"].shape == (0, 2)
        assert result["classes"].tolist() == [0, -1, 2, 1, -1, 2, 2, -1, 2]


def test_rows_of_one_process_are_its_own_without_their_graph():
    rows = torch.ones(2, 3, requires_grad=True)
    gathered = gather_rows(rows * 2)
    assert torch.equal(gathered, torch.full((2, 3), 2.0))
    assert not gathered.requires_grad
