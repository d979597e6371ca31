"""PNE on 2 processes draws, and has the gradients of, one process with the whole batch."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launching import run_processes
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg

FEW = {"CHANNELS": 8, "NUM_SAMPLES": 3, "MAX_ANCHORS": 4}
SMALL = {**FEW, "NO_NEGATIVES": "anchors"}
CASES = {
    "image, skip": FEW,
    "image": SMALL,
    "batch": {**SMALL, "SCOPE": "batch"},
    "batch, samples with gradient": {**SMALL, "SCOPE": "batch", "DETACH_SAMPLES": False},
    "batch, negatives of all classes": {**SMALL, "SCOPE": "batch", "CORRESPONDING_NEGATIVES": False},
    "batch, mixed sets": {**SMALL, "SCOPE": "batch", "INDIVIDUAL_ANCHOR_SETS": False},
    "batch, Eq. 1, skip": {**SMALL, "SCOPE": "batch", "CONTRAST": "asymmetric", "NO_NEGATIVES": "skip"},
    "batch, skip": {**FEW, "SCOPE": "batch"},
    "batch, exclude": {**FEW, "SCOPE": "batch", "NO_NEGATIVES": "exclude"},
    "image, mixed sets, samples with gradient": {
        **SMALL,
        "INDIVIDUAL_ANCHOR_SETS": False,
        "DETACH_SAMPLES": False,
    },
}
STEPS = 4


def make_batch(rank, step):
    """Images of one process; on step 1 those of the second process are void, on step 2 all are."""
    batch = small_batch(2, size=(64, 64), seed=10 * step + rank)
    if step == 2 or (step == 1 and rank == 1):
        for sample in batch:
            sample["sem_seg"].fill_(IGNORE)
    elif rank == 0:
        for sample in batch:
            sample["sem_seg"][:, :24] = IGNORE
    return batch


def steps(case, world_size):
    cfg = small_cfg("FCN", ["PNE"])
    cfg.SEED = 4
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    for key, value in CASES[case].items():
        cfg.merge_from_list([f"MODEL.REGULARIZERS.PNE.{key}", value])
    torch.manual_seed(5)
    model = build_model(cfg).double()
    # Predictions that differ enough from pixel to pixel, so that classes have right pixels, and never
    # class 4, so that pairs have no negatives too.
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.mul_(100)
        model.sem_seg_head.predictor.bias[NUM_CLASSES - 1] -= 5.0
    network = model if world_size == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    results = []
    seen = {}
    model.regularizers["PNE"].observer = lambda: seen.__setitem__
    for step in range(STEPS):
        batch = sum((make_batch(rank, step) for rank in range(2)), [])
        if world_size == 2:
            batch = make_batch(comm.get_rank(), step)
        losses = network(batch)
        loss = losses["loss_pne_contrast"]
        model.zero_grad()
        # The other losses with weight 0: every parameter has to take part.
        (loss + 0.0 * sum(losses.values())).backward()
        results.append(
            {
                "loss": loss.item(),
                "anchors": seen["pne/anchors"],
                "sets": seen["pne/sets"],
                "gradients": {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
            }
        )
    return results, {name: b.clone() for name, b in model.regularizers.named_buffers()}


def all_steps():
    """Every case in one launch: starting the processes takes longer than the steps."""
    return {case: steps(case, 2) for case in CASES}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_processes(all_steps, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_processes):
    expected, state = steps(case, 1)
    results = [result[case] for result in two_processes]
    for step, whole in enumerate(expected):
        parts = [steps_of_rank[step] for steps_of_rank, _ in results]
        assert sum(part["anchors"] for part in parts) == whole["anchors"]
        assert sum(part["sets"] for part in parts) == whole["sets"]
        assert sum(part["loss"] for part in parts) / 2 == pytest.approx(whole["loss"], rel=1e-9)
        for name, gradient in whole["gradients"].items():
            for part in parts:
                difference = (part["gradients"][name] - gradient).norm()
                assert difference <= 1e-5 * gradient.norm() + 1e-12, (step, name)
    assert expected[0]["anchors"] > 5
    assert expected[0]["loss"] > 0
    assert expected[1]["anchors"] > 0 or "skip" in case or "exclude" in case
    assert expected[2]["loss"] == 0
    for name, value in state.items():
        assert torch.equal(results[0][1][name], results[1][1][name]), name
        torch.testing.assert_close(results[0][1][name], value)
