"""Two gloo processes that train one model."""

import copy

import pytest
import torch
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.engine.devices import wrap_model
from regseg_d2.engine.optim import build_optimizer
from regseg_d2.engine.step import TrainingStep
from tests.distributed.launching import run_processes
from tests.engine.runs import finish, train
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


class IdleSegmentor(BankedSegmentor):
    """Has a stage, and a parameter beside used ones, that take part in no loss."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.extra = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.sem_seg_head[1].scale = nn.Parameter(torch.ones(4))


def make_idle_step(**options):
    cfg = toy_cfg("unused", MODEL__NORM="", MODEL__SEM_SEG_HEAD__DROPOUT=0.0)
    torch.manual_seed(0)
    model = IdleSegmentor(cfg).train()
    return TrainingStep(wrap_model(model, **options), build_optimizer(cfg, model)), model


def two_steps_of_an_idle_network(find_unused_parameters):
    from detectron2.utils import comm

    step, model = make_idle_step(find_unused_parameters=find_unused_parameters)
    before = copy.deepcopy(list(model.parameters()))
    try:
        for number in range(2):
            step.run(iter([[toy_sample(10 * number + comm.get_rank())]]))
    except ConfigError as error:
        return str(error), same_state(before, list(model.parameters()))
    return model.state_dict()


def test_parameters_that_take_part_in_no_loss_are_named_before_the_first_update(tmp_path):
    results = run_processes(two_steps_of_an_idle_network, 2, tmp_path, False)
    for message, weights_are_as_before in results:
        assert message.startswith("5 of 9 parameters take part in no loss")
        assert ": sem_seg_head.1.scale, extra. Leave out" in message
        assert weights_are_as_before


def test_they_are_looked_for_where_the_config_says_so(tmp_path):
    first, second = run_processes(two_steps_of_an_idle_network, 2, tmp_path, True)
    assert same_state(first, second)
    alone, model = make_idle_step()
    before = copy.deepcopy(model.state_dict())
    for number in range(2):
        alone.run(iter([[toy_sample(10 * number), toy_sample(10 * number + 1)]]))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(value, before[name]) == ("extra" in name or "scale" in name)


UNREAD = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD: {NUM_CLASSES: 10, IN_FEATURES: [res3], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
DATASETS: {TRAIN: [cooccurrence_train], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {CROP: {SIZE: [32, 32]}}
SOLVER: {MAX_ITER: 3, IMS_PER_BATCH: 2}
LOG_PERIOD: 1
"""


def test_a_feature_that_no_head_reads_is_one_error_on_two_processes(tmp_path):
    config, run = tmp_path / "unread.yaml", tmp_path / "run"
    config.write_text(UNREAD)
    output = finish(train(config, "--num-gpus", 2, "OUTPUT_DIR", run), status=2)
    message = output[output.rindex("\nError: ") :]
    assert output.count("\nError") == 1 and "Traceback" not in message
    assert "take part in no loss" in message and ": backbone.network.layer3. Leave out" in message
    assert "FIND_UNUSED_PARAMETERS True" in message
    assert not (run / "metrics.json").exists()
    finish(train(config, "--num-gpus", 2, "OUTPUT_DIR", run, "FIND_UNUSED_PARAMETERS", True))
    assert len((run / "metrics.json").read_text().splitlines()) == 3
    finish(train(config, "OUTPUT_DIR", tmp_path / "alone"))  # one process has nothing to wait for
