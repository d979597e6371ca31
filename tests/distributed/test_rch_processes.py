"""RCH on two processes: the losses and gradients of the whole batch, the same prototypes."""

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from regseg_d2.regularizers import RCH
from tests.distributed.launching import run_processes
from tests.distributed.uneven_steps import CHANNELS, NUM_CLASSES, VOID_STEP, assert_two_equal_one, run_steps

CASES = {
    "tp": {},
    "tp, errors of the batch": {"errors": "batch"},
    "gt": {"prototypes": "gt"},
    "learned": {"prototypes": "learned"},
    "learned, errors of the batch": {"prototypes": "learned", "errors": "batch"},
    "detached": {"detach_prototypes": True},
    "no_terms": {"fp_penalty": False, "fn_compensation": False},
    "nothing_reduced": {"fp_penalty": False, "fn_compensation": False, "detach_prototypes": True},
}


def steps(case, ranks):
    torch.manual_seed(1)
    module = RCH(
        NUM_CLASSES,
        CHANNELS,
        embedding_channels=CHANNELS,
        feature_tap="in",
        logits_tap="out",
        weights={"metric": 1.0},
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
    assert [loss > 0 for loss in expected.losses] == [step != VOID_STEP for step in range(7)]
    if not case.startswith("learned"):
        assert expected.state["ema.counts"].min() >= 4
