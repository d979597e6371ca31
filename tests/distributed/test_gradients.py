"""W processes of batch B have the gradients of one process of batch W x B."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import run_processes
from tests.helpers import IGNORE, small_batch, small_cfg

CAR_CASES = {
    "batch": [],
    "image": ["MODEL.REGULARIZERS.CAR.CENTERS", "image"],
    "ema": ["MODEL.REGULARIZERS.CAR.CENTERS", "ema"],
    "free_centers": ["MODEL.REGULARIZERS.CAR.DETACH_CENTERS", False],
    "squared_mean": ["MODEL.REGULARIZERS.CAR.REDUCTION", "squared_mean"],
    "class_weights": ["MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS", [1.0, 2.0, 0.5, 3.0, 1.0]],
}


def make_batch(rank, voids):
    batch = small_batch(2, size=(64, 64), seed=rank)
    if voids == "uneven" and rank == 1:
        for sample in batch:
            sample["sem_seg"][:, :40] = IGNORE
    if voids == "one_process_all_void" and rank == 1:
        for sample in batch:
            sample["sem_seg"].fill_(IGNORE)
    return batch


def gradients(case, voids, world_size):
    """One step of this process; with ``world_size`` 1 on everything that 2 processes would see."""
    cfg = small_cfg("FCN-linear", ["CAR"])
    cfg.merge_from_list(CAR_CASES[case])
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = cfg.MODEL.SEM_SEG_HEAD.AUX.DROPOUT = 0.0
    torch.manual_seed(5)
    model = build_model(cfg).double()
    assert sum(p.numel() for p in model.parameters()) > 1000
    rank = comm.get_rank()
    if world_size == 1:
        batch = make_batch(0, voids) + make_batch(1, voids)
        losses = model(batch)
    else:
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        losses = wrapped(make_batch(rank, voids))
    sum(losses.values()).backward()
    return {
        "losses": {key: value.item() for key, value in losses.items()},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters()},
        "state": {name: b.clone() for name, b in model.regularizers.named_buffers()},
    }


VOIDS = ("even", "uneven", "one_process_all_void")


def all_gradients():
    """Every case in one launch: starting the processes takes longer than the steps."""
    return {(case, voids): gradients(case, voids, 2) for case in CAR_CASES for voids in VOIDS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(all_gradients, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CAR_CASES)
@pytest.mark.parametrize("voids", VOIDS)
def test_two_processes_equal_one(case, voids, two_processes):
    expected = gradients(case, voids, 1)
    results = [result[case, voids] for result in two_processes]
    for name, value in expected["gradients"].items():
        for result in results:
            difference = (result["gradients"][name] - value).norm()
            assert difference <= 1e-5 * value.norm() + 1e-12, name
    assert sum(value.norm() for value in expected["gradients"].values()) > 0
    for key, value in expected["losses"].items():
        mean = sum(result["losses"][key] for result in results) / 2
        assert mean == pytest.approx(value, rel=1e-9), key
    for name, value in expected["state"].items():
        assert torch.equal(results[0]["state"][name], results[1]["state"][name]), name
        torch.testing.assert_close(results[0]["state"][name], value)
