"""The side losses of context modules on 2 processes have the gradients of one with the whole batch."""

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.modeling.heads.contexts.cpnet import AffinityLoss
from regseg_d2.modeling.heads.contexts.encnet import PresenceLoss
from tests.distributed.launching import run_processes

VOID = 9
LOSSES = {"presence": PresenceLoss(4, VOID), "affinity": AffinityLoss((2, 3), 4, VOID)}


def make_inputs(name, labels_of_rank_1):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 4) if name == "presence" else (4, 6, 6)
    output = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 4, (4, 5, 7), generator=generator)
    labels[:, :2] = VOID
    labels[0] = VOID
    if labels_of_rank_1 == "void":
        labels[2:] = VOID
    elif labels_of_rank_1 == "all void":
        labels[:] = VOID
    return output, labels


CASES = [(name, labels) for name in LOSSES for labels in ("mixed", "void", "all void")]


def compute(own):
    """Loss and gradient of each case, of the images ``own`` (a slice), or of this rank's half."""
    if own is None:
        own = slice(2 * comm.get_rank(), 2 * comm.get_rank() + 2)
    results = []
    for name, labels_of_rank_1 in CASES:
        output, labels = make_inputs(name, labels_of_rank_1)
        loss = LOSSES[name](output[own], labels[own])
        (gradient,) = torch.autograd.grad(loss, output)
        results.append((loss.item(), gradient))
    return results


def test_two_processes_are_one(tmp_path):
    whole = compute(slice(None))
    parts = run_processes(compute, 2, tmp_path, None)
    for case, (loss, gradient), first, second in zip(CASES, whole, *parts, strict=True):
        # The loss is the mean over processes of what they return.
        assert (first[0] + second[0]) / 2 == pytest.approx(loss, rel=1e-12), case
        torch.testing.assert_close((first[1] + second[1]) / 2, gradient)
        assert (loss == 0) == (case[1] == "all void"), case
