"""ContrastSeg on two processes: draws, losses and gradients of the whole batch, the same memory."""

import pytest
from detectron2.utils import comm
from torch import nn

from regseg_d2.regularizers import ContrastSeg
from tests.distributed.launching import run_processes
from tests.distributed.uneven_steps import CHANNELS, NUM_CLASSES, NUM_STEPS, assert_two_equal_one, run_steps

FEW = {"max_anchors": 30, "max_views": 4}
ONE = {"max_views": 1}
HARD = {"sampling": "semi_hard", "hard_fraction": 0.5, "num_positives": 3, "num_negatives": 5}
MEMORY = {"memory": True, "memory_size": 9, "pixels_per_class": 3}
CASES = {
    "batch": {},
    "batch_few": FEW,
    "batch_fewer_than_groups": {"max_anchors": 3},
    "batch_random": {**FEW, "anchors": "random"},
    "batch_semi_hard": FEW | HARD,
    "memory": ONE | MEMORY,
    "memory_few": {**FEW, **MEMORY, "memory_dtype": "float16"},
    "memory_semi_hard": FEW | MEMORY | HARD,
}


def steps(case, ranks):
    module = ContrastSeg(
        NUM_CLASSES,
        CHANNELS,
        embedding_channels=CHANNELS,
        feature_tap="in",
        logits_tap="out",
        weights={"contrast": 1.0},
        seed=3,
        **CASES[case],
    )
    # The norm of the projection is not what is tested here.
    module.projection = nn.Identity()
    return run_steps(module, ranks)


def all_cases():
    return {case: steps(case, [comm.get_rank()]) for case in CASES}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(all_cases, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_processes):
    expected = steps(case, [0, 1])
    assert_two_equal_one([result[case] for result in two_processes], expected)
    assert sum(loss > 0 for loss in expected.losses) >= 5
    assert expected.state["random.step"].item() == NUM_STEPS
    if "memory" in case:
        # Round the end of both queues.
        assert expected.state["pixel_queue.written"].min() > 9
        assert expected.state["region_queue.written"].max() > 9
