"""RegionContrast on two processes: the losses and gradients of the whole batch, the same bank."""

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.regularizers import RegionContrast, RegularizerInput
from tests.distributed.launching import run_processes

K, C, IGNORE, SIZE = 4, 6, 255, (5, 6)
KEY = "loss_region_contrast_contrast"
CASES = {
    "dynamic": {"bank_size": 4},
    "gt_mean": {"bank_size": 30, "center": "gt_mean"},
    "predicted": {"bank_size": 4, "center": "predicted"},
    "half": {"bank_size": 4, "bank_dtype": "float16"},
    "no_bank": {"bank_size": 0},
    "no_bank_predicted": {"bank_size": 0, "center": "predicted"},
}
STEPS = 7


def make_tensors(rank, step):
    """Two images of one process; unevenly void, all void on one process, on both."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    feature = torch.randn(2, C, *SIZE, dtype=torch.float64, generator=generator)
    logits = 2 * torch.randn(2, K, *SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator)
    # The second process shows fewer classes.
    labels[labels >= K - rank] = IGNORE
    if (step == 2 and rank == 1) or (step == 4 and rank == 0) or step == 5:
        labels.fill_(IGNORE)
    return feature, logits, labels


def run_steps(case, ranks):
    """Losses, gradients and state of this process, which has the images of ``ranks``."""
    torch.manual_seed(ranks[0])
    module = RegionContrast(
        channels=C,
        num_classes=K,
        feature_tap="in",
        logits_tap="out",
        weights={"contrast": 1.0},
        **CASES[case],
    )
    losses, gradients = [], []
    for step in range(STEPS):
        feature, logits, labels = (
            torch.cat(parts) for parts in zip(*(make_tensors(rank, step) for rank in ranks), strict=True)
        )
        feature.requires_grad_(True)
        loss = module(RegularizerInput({"in": feature, "out": logits}, labels, IGNORE))[KEY]
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, feature)[0])
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
        # What DistributedDataParallel averages.
        ours = torch.cat([gradients[step], other_gradients[step]]) / 2
        difference = (ours - expected_gradients[step]).norm()
        assert difference <= 1e-5 * expected_gradients[step].norm() + 1e-12
    # Steps 0 and 5 have nothing to contrast (an empty bank, no label); all others do.
    assert [loss > 0 for loss in expected_losses[1:]] == [True, True, True, True, False, True]
    assert expected_losses[0] == 0.0 or case.startswith("no_bank")
    assert set(state) == set(other_state) == set(expected_state)
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name
        torch.testing.assert_close(value, expected_state[name])
