"""MDRL in the head on two processes: gradients and memory of one process with the whole batch."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import run_processes
from tests.helpers import IGNORE, small_batch, small_cfg

CASES = {
    "alone": {},
    "in the head": {"SEM_SEG_HEAD__AUGMENT": "MDRL"},
    "in the head, one distribution": {
        "SEM_SEG_HEAD__AUGMENT": "MDRL",
        "REGULARIZERS__MDRL__NUM_DISTRIBUTIONS": 1,
        "REGULARIZERS__MDRL__MOMENTUM": 0.5,
    },
}
STEPS = 6


def make_batch(rank, step):
    """Uneven: in every third step the second process has nothing but void."""
    batch = small_batch(2, size=(64, 64), seed=10 * step + rank)
    for sample in batch:
        sample["sem_seg"][:, : 16 * rank] = IGNORE
        if rank == 1 and step % 3 == 1:
            sample["sem_seg"].fill_(IGNORE)
    return batch


def steps(case):
    """Gradients of each step, parameters left as they are; the state after the last."""
    cfg = small_cfg("FCN", ["MDRL"], **CASES[case])
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    torch.manual_seed(5)
    model = build_model(cfg).double()
    alone = comm.get_world_size() == 1
    network = model if alone else DistributedDataParallel(model, broadcast_buffers=False)
    gradients, losses = [], []
    for step in range(STEPS):
        ranks = (0, 1) if alone else (comm.get_rank(),)
        result = network([sample for rank in ranks for sample in make_batch(rank, step)])
        model.zero_grad()
        sum(result.values()).backward()
        losses.append({key: value.item() for key, value in result.items()})
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    memory = model.regularizers["MDRL"].memory.state_dict()
    return {"gradients": gradients, "losses": losses, "memory": {k: v.clone() for k, v in memory.items()}}


def all_cases():
    """Every case in one launch: starting the processes takes longer than the steps."""
    return {case: steps(case) for case in CASES}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(all_cases, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_processes):
    expected = steps(case)
    results = [result[case] for result in two_processes]
    for step in range(STEPS):
        for name, value in expected["gradients"][step].items():
            for result in results:
                difference = (result["gradients"][step][name] - value).norm()
                assert difference <= 1e-5 * value.norm() + 1e-12, (step, name)
        for key, value in expected["losses"][step].items():
            mean = sum(result["losses"][step][key] for result in results) / 2
            assert mean == pytest.approx(value, rel=1e-9), (step, key)
    for key, value in expected["memory"].items():
        assert torch.equal(results[0]["memory"][key], results[1]["memory"][key]), key
        torch.testing.assert_close(results[0]["memory"][key], value)
    assert expected["memory"]["counts"].sum() > STEPS
