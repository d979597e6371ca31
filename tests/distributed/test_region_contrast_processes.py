"""RegionContrast on two processes: the losses and gradients of the whole batch, the same bank."""

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.regularizers import RegionContrast
from tests.distributed.launching import run_processes
from tests.distributed.uneven_steps import CHANNELS, NUM_CLASSES, assert_two_equal_one, run_steps

CASES = {
    "dynamic": {"bank_size": 4},
    "gt_mean": {"bank_size": 30, "center": "gt_mean"},
    "predicted": {"bank_size": 4, "center": "predicted"},
    "half": {"bank_size": 4, "bank_dtype": "float16"},
    "class_sum": {"bank_size": 4, "reduction": "class_sum"},
    "no_bank": {"bank_size": 0},
    "no_bank_class_sum": {"bank_size": 0, "reduction": "class_sum"},
    "no_bank_predicted": {"bank_size": 0, "center": "predicted"},
}


def steps(case, ranks):
    torch.manual_seed(ranks[0])
    module = RegionContrast(
        NUM_CLASSES,
        CHANNELS,
        feature_tap="in",
        logits_tap="out",
        weights={"contrast": 1.0},
        **CASES[case],
    )
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
    # Steps 0 and 5 have nothing to contrast (an empty bank, no label); all others do.
    assert [loss > 0 for loss in expected.losses[1:]] == [True, True, True, True, False, True]
    assert expected.losses[0] == 0.0 or case.startswith("no_bank")
