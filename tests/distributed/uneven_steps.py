"""Steps of one regularizer on one process or several, with uneven labels, and what has to be equal."""

from typing import NamedTuple

import pytest
import torch

from regseg_d2.regularizers import RegularizerInput

NUM_CLASSES, CHANNELS, IGNORE, SIZE = 4, 6, 255, (5, 6)
NUM_STEPS = 7
#: Step on which no process has a label.
VOID_STEP = 5


class Steps(NamedTuple):
    """What came of the steps of one process: one entry a step, and the state at the end.

    The gradients are those of the feature and of the regularizer's own parameters.
    """

    losses: list[float]
    gradients: list[tuple[torch.Tensor, ...]]
    state: dict[str, torch.Tensor]


def make_tensors(rank, step):
    """Two images of one process; unevenly void, all void on one process, on both."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    feature = torch.randn(2, CHANNELS, *SIZE, dtype=torch.float64, generator=generator)
    logits = 2 * torch.randn(2, NUM_CLASSES, *SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (2, *SIZE), generator=generator)
    # The second process shows fewer classes.
    labels[labels >= NUM_CLASSES - rank] = IGNORE
    if (step == 2 and rank == 1) or (step == 4 and rank == 0) or step == VOID_STEP:
        labels.fill_(IGNORE)
    return feature, logits, labels


def run_steps(regularizer, ranks):
    """Steps of a regularizer with taps "in" and "out" on the images of ``ranks``."""
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        feature, logits, labels = (
            torch.cat(parts) for parts in zip(*(make_tensors(rank, step) for rank in ranks), strict=True)
        )
        feature.requires_grad_(True)
        inputs = RegularizerInput({"in": feature, "out": logits}, labels, NUM_CLASSES)
        (loss,) = regularizer(inputs).values()
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, [feature, *regularizer.parameters()]))
    return Steps(losses, gradients, regularizer.state_dict())


def assert_two_equal_one(two, one):
    """Losses, gradients as DistributedDataParallel averages them, and state, byte-equal on both.

    Args:
        two: the steps of each of two processes.
        one: those of one process with the images of both.
    """
    for step in range(NUM_STEPS):
        mean = (two[0].losses[step] + two[1].losses[step]) / 2
        assert mean == pytest.approx(one.losses[step], rel=1e-9, abs=1e-12)
        # Images are joined, parameters are shared.
        pairs = list(zip(two[0].gradients[step], two[1].gradients[step], strict=True))
        ours = [torch.cat(pairs[0]) / 2, *((a + b) / 2 for a, b in pairs[1:])]
        for gradient, expected in zip(ours, one.gradients[step], strict=True):
            assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-12
    assert set(two[0].state) == set(two[1].state) == set(one.state)
    for name, value in two[0].state.items():
        assert torch.equal(value, two[1].state[name]), name
        torch.testing.assert_close(value, one.state[name])
