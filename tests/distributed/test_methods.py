"""Every method on 2 and 3 processes: the gradients of one process with the whole batch, equal state."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import run_processes
from tests.helpers import IGNORE, small_batch, small_cfg

CASES = {
    "CAR": [],
    "RegionContrast": ["MODEL.REGULARIZERS.RegionContrast.BANK_SIZE", 5],
    "RCH": [],
    "PNE": [],
    "MDRL": [],
    "ContrastSeg": [],
}
STEPS = 20


def make_batch(rank, step):
    """Two images of one process; uneven, and void on one process in every third step."""
    batch = small_batch(2, size=(64, 64), seed=100 * step + rank)
    for sample in batch:
        sample["sem_seg"][:, : 7 * rank] = IGNORE
        if step % 3 == 1 and rank == 1:
            sample["sem_seg"].fill_(IGNORE)
    return batch


def make_model(names):
    cfg = small_cfg("FCN", names)
    for name in names:
        cfg.merge_from_list(CASES[name])
    cfg.SEED = 5
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    torch.manual_seed(5)
    return build_model(cfg).double()


def steps(names, world_size):
    """Trains for some steps; returns what must not depend on the number of processes.

    With ``world_size`` 1 on this process, what that many processes would see; the parameters stay as
    they are, so that differences do not grow from step to step.
    """
    model = make_model(names)
    alone = comm.get_world_size() == 1
    network = model if alone else DistributedDataParallel(model, broadcast_buffers=False)
    gradients = []
    for step in range(STEPS):
        if alone:
            batch = [sample for rank in range(world_size) for sample in make_batch(rank, step)]
        else:
            batch = make_batch(comm.get_rank(), step)
        losses = network(batch)
        model.zero_grad()
        sum(losses.values()).backward()
        if step in (0, 1, STEPS - 1):
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return {
        "gradients": gradients,
        "state": {name: b.clone() for name, b in model.regularizers.named_buffers()},
    }


def all_cases(world_size):
    """Every case in one launch: starting the processes takes longer than the steps."""
    return {name: steps([name], world_size) for name in CASES}


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    return request.param, run_processes(all_cases, request.param, folder, request.param)


@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one_with_the_whole_batch(name, results):
    world_size, per_rank = results
    expected = steps([name], world_size)
    for result in per_rank:
        for ours, theirs in zip(result[name]["gradients"], expected["gradients"], strict=True):
            for parameter, gradient in theirs.items():
                difference = (ours[parameter] - gradient).norm()
                assert difference <= 1e-5 * gradient.norm() + 1e-12, parameter
    own = [key for key in expected["gradients"][-1] if key.startswith("regularizers.")]
    assert all(expected["gradients"][-1][key].norm() > 0 for key in own if "norm" not in key)
    for key, value in expected["state"].items():
        for result in per_rank:
            assert torch.equal(result[name]["state"][key], per_rank[0][name]["state"][key]), key
        torch.testing.assert_close(per_rank[0][name]["state"][key], value)
