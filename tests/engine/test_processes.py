"""Two gloo processes that train one model."""

import copy

import pytest
import torch

from regseg_d2.engine.devices import wrap_model
from regseg_d2.engine.optim import build_optimizer
from regseg_d2.engine.step import TrainingStep
from tests.distributed.launching import run_processes
from tests.engine.toys import BankedSegmentor, same_state, toy_cfg, toy_sample

pytestmark = pytest.mark.slow


def make_step(accum_steps):
    cfg = toy_cfg("unused", MODEL__NORM="", MODEL__SEM_SEG_HEAD__DROPOUT=0.0, SOLVER__ACCUM_STEPS=accum_steps)
    torch.manual_seed(0)
    model = BankedSegmentor(cfg).train()
    optimizer = build_optimizer(cfg, model)
    return TrainingStep(wrap_model(model), optimizer, accum_steps=accum_steps), model


def two_steps_and_a_poisoned_one():
    """Trains on this process's half; the second step is poisoned on process 1 alone."""
    from detectron2.utils import comm

    step, model = make_step(accum_steps=2)
    rank = comm.get_rank()
    skipped, losses, states = [], [], []
    for number, poisoned in enumerate([False, True, False]):
        batches = []
        for micro_step in range(2):
            sample = toy_sample(10 * number + 2 * micro_step + rank)
            sample["poison"] = poisoned and rank == 1
            batches.append([sample])
        result = step.run(iter(batches))
        skipped.append(result.skipped)
        losses.append(result.losses["loss_sem_seg"])
        states.append(copy.deepcopy(model.state_dict()))
    return skipped, losses, states, step.skipped_steps


def test_two_processes_are_one_with_the_whole_batch_and_skip_together(tmp_path):
    first, second = run_processes(two_steps_and_a_poisoned_one, 2, tmp_path)
    assert first[0] == second[0] == [False, True, False]
    assert first[3] == second[3] == 1
    assert same_state(first[2], second[2])
    assert same_state(first[2][0], first[2][1])
    assert first[2][2]["bank.written"].sum() == 8
    assert first[1][0] == second[1][0]

    alone, model = make_step(accum_steps=1)
    for number in (0, 2):
        result = alone.run(iter([[toy_sample(10 * number + i) for i in range(4)]]))
        # Labels have the same number of valid pixels, so the mean of means is the mean.
        assert result.losses["loss_sem_seg"] == pytest.approx(first[1][number], rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[2][2][name], rtol=1e-5, atol=1e-7)
