"""RCH on two processes: the losses and gradients of the whole batch, the same prototypes."""

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from regseg_d2.regularizers import RCH, RegularizerInput
from tests.distributed.launching import run_processes

K, D, IGNORE, SIZE = 4, 6, 255, (5, 6)
CASES = {
    "tp": {},
    "gt": {"prototypes": "gt"},
    "learned": {"prototypes": "learned"},
    "detached": {"detach_prototypes": True},
    "no_terms": {"fp_penalty": False, "fn_compensation": False},
    "nothing_reduced": {"fp_penalty": False, "fn_compensation": False, "detach_prototypes": True},
}
STEPS = 7


def make_tensors(rank, step):
    """Two images of one process; unevenly void, all void on one process, on both."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    feature = torch.randn(2, D, *SIZE, dtype=torch.float64, generator=generator)
    logits = 2 * torch.randn(2, K, *SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator)
    # The second process shows fewer classes.
    labels[labels >= K - rank] = IGNORE
    if (step == 2 and rank == 1) or (step == 4 and rank == 0) or step == 5:
        labels.fill_(IGNORE)
    return feature, logits, labels


def run_steps(case, ranks):
    """Losses, gradients and state of this process, which has the images of ``ranks``."""
    torch.manual_seed(1)
    module = RCH(
        in_channels=D,
        channels=D,
        num_classes=K,
        norm="BN",
        feature_tap="in",
        logits_tap="out",
        weights={"metric": 1.0},
        **CASES[case],
    )
    # The norm of the projection is not what is tested here.
    module.projection = nn.Identity()
    losses, gradients = [], []
    for step in range(STEPS):
        feature, logits, labels = (
            torch.cat(parts) for parts in zip(*(make_tensors(rank, step) for rank in ranks), strict=True)
        )
        feature.requires_grad_(True)
        loss = module(RegularizerInput({"in": feature, "out": logits}, labels, IGNORE))["loss_rch_metric"]
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, [feature, *module.parameters()]))
    return losses, gradients, module.state_dict()


def all_cases():
    return {case: run_steps(case, [comm.get_rank()]) for case in CASES}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(all_cases, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_processes):
    expected_losses, expected_gradients, expected_state = run_steps(case, [0, 1])
    (losses, gradients, state), (other_losses, other_gradients, other_state) = (
        result[case] for result in two_processes
    )
    for step in range(STEPS):
        mean = (losses[step] + other_losses[step]) / 2
        assert mean == pytest.approx(expected_losses[step], rel=1e-9, abs=1e-12)
        # What DistributedDataParallel averages: images are joined, parameters are shared.
        pairs = list(zip(gradients[step], other_gradients[step], strict=True))
        ours = [torch.cat(pairs[0]) / 2, *((a + b) / 2 for a, b in pairs[1:])]
        for gradient, expected in zip(ours, expected_gradients[step], strict=True):
            assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-12
    assert [loss > 0 for loss in expected_losses] == [True] * 5 + [False, True]
    assert set(state) == set(other_state) == set(expected_state)
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name
        torch.testing.assert_close(value, expected_state[name])
    if case != "learned":
        assert state["ema.counts"].tolist() == expected_state["ema.counts"].tolist()
        assert state["ema.counts"].min() >= 4
