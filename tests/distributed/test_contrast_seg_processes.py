"""ContrastSeg on two processes: draws, losses and gradients of the whole batch, the same memory."""

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from regseg_d2.regularizers import ContrastSeg, RegularizerInput
from regseg_d2.regularizers.contrast_seg import AnchorOptions, MemoryOptions, SamplingOptions
from tests.distributed.launching import run_processes

K, C, IGNORE, SIZE = 4, 6, 255, (5, 6)
FEW = AnchorOptions(max_anchors=30, max_views=4)
ONE = AnchorOptions(max_views=1)
HARD = SamplingOptions("semi_hard", 0.5, 3, 5)
CASES = {
    "batch": {"anchors": AnchorOptions()},
    "batch_few": {"anchors": FEW},
    "batch_fewer_than_groups": {"anchors": AnchorOptions(max_anchors=3)},
    "batch_random": {"anchors": FEW._replace(kind="random")},
    "batch_semi_hard": {"anchors": FEW, "sampling": HARD},
    "memory": {"anchors": ONE, "memory": MemoryOptions(9, "float32", 3)},
    "memory_few": {"anchors": FEW, "memory": MemoryOptions(9, "float16", 3)},
    "memory_semi_hard": {"anchors": FEW, "memory": MemoryOptions(9, "float32", 3), "sampling": HARD},
}
STEPS = 7


def make_tensors(rank, step):
    """Two images of one process; unevenly void, all void on one process, on both."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    feature = torch.randn(2, C, *SIZE, dtype=torch.float64, generator=generator)
    logits = torch.randn(2, K, *SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator)
    # The second process shows fewer classes.
    labels[labels >= K - rank] = IGNORE
    if (step == 2 and rank == 1) or (step == 4 and rank == 0) or step == 5:
        labels.fill_(IGNORE)
    return feature, logits, labels


def run_steps(case, ranks):
    """Losses, gradients and state of this process, which has the images of ``ranks``."""
    module = ContrastSeg(
        channels=C,
        num_classes=K,
        embedding_channels=C,
        feature_tap="in",
        logits_tap="out",
        weights={"contrast": 1.0},
        seed=3,
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
        loss = module(RegularizerInput({"in": feature, "out": logits}, labels, IGNORE))
        loss = loss["loss_contrast_seg_contrast"]
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
    assert sum(value > 0 for value in expected_losses) >= 5
    for step in range(STEPS):
        mean = (losses[step] + other_losses[step]) / 2
        assert mean == pytest.approx(expected_losses[step], rel=1e-9, abs=1e-12)
        # Averaging over processes, as DistributedDataParallel does.
        both = torch.cat([gradients[step], other_gradients[step]]) / 2
        torch.testing.assert_close(both, expected_gradients[step], rtol=1e-8, atol=1e-12)
    for key, value in expected_state.items():
        assert torch.equal(state[key], other_state[key]), key
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-6)
    assert expected_state["random.step"].item() == STEPS
    if "memory" in case:
        # Round the end of both queues.
        assert expected_state["pixel_queue.written"].min() > 9
        assert expected_state["region_queue.written"].max() > 9
