"""Networks of transformers on two processes: gradients of regularizers are those of one process."""

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.engine.devices import wrap_model
from regseg_d2.segmentor.build import build_model
from tests.distributed.launching import run_processes
from tests.helpers import IGNORE, small_batch
from tests.huggingface_networks import huggingface_cfg

pytestmark = pytest.mark.slow
FAMILIES = ("segformer", "mask2former")
NAMES = ["CAR", "PNE"]


def make_batch(rank):
    batch = small_batch(2, seed=rank)
    for sample in batch:
        sample["sem_seg"][:, : 9 * rank] = IGNORE
    return batch


def step(model_type):
    """One step of this process, or of one process on all that two would see."""
    changes = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0} if model_type == "segformer" else {}
    torch.manual_seed(5)
    cfg = huggingface_cfg(model_type, NAMES, **changes)
    cfg.SEED = 5
    model = build_model(cfg).double()
    network = wrap_model(model)
    is_alone = comm.get_world_size() == 1
    losses = network(make_batch(0) + make_batch(1) if is_alone else make_batch(comm.get_rank()))
    # The network's own loss is transformers' own: the mean of the processes' means, of points drawn by each.
    own = {name: loss for name, loss in losses.items() if name != "loss_sem_seg"}
    (sum(own.values()) + 0 * losses["loss_sem_seg"]).backward()
    return {
        "losses": {name: loss.item() for name, loss in own.items()},
        "gradients": {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        "state": {name: b.clone() for name, b in model.regularizers.named_buffers()},
    }


def in_float64(model_type):
    torch.set_default_dtype(torch.float64)  # transformers' matcher draws points of the default type
    try:
        return step(model_type)
    finally:
        torch.set_default_dtype(torch.float32)


def both():
    return {model_type: in_float64(model_type) for model_type in FAMILIES}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(both, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_processes_equal_one(model_type, two_processes):
    expected = in_float64(model_type)
    results = [result[model_type] for result in two_processes]
    assert sum(gradient.norm() for gradient in expected["gradients"].values()) > 0
    for result in results:
        assert set(result["gradients"]) == set(expected["gradients"])
        for name, gradient in expected["gradients"].items():
            difference = (result["gradients"][name] - gradient).norm()
            assert difference <= 1e-5 * gradient.norm() + 1e-12, name
    for name, loss in expected["losses"].items():
        assert sum(r["losses"][name] for r in results) / 2 == pytest.approx(loss, rel=1e-9), name
    for name, value in expected["state"].items():
        assert torch.equal(results[0]["state"][name], results[1]["state"][name]), name
        torch.testing.assert_close(results[0]["state"][name], value)
