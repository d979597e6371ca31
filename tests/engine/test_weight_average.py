"""The moving average of the weights: against a slow reference, over kills, processes and skipped steps."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.devices import unwrap_model
from regseg_d2.state.distribution_memory import DistributionMemory
from regseg_d2.weights.reading import load_file
from tests.distributed.launching import run_processes
from tests.engine.toys import (
    ToyBatches,
    ToyTrainer,
    register_toy_test_set,
    same_state,
    toy_cfg,
    train_or_die,
)

DECAY = 0.8


def ema_cfg(folder, **keys):
    return toy_cfg(folder, SOLVER__EMA__ENABLED=True, SOLVER__EMA__DECAY=DECAY, **keys)


def train(cfg, *, resume=False, kill_at=None, trainer_class=ToyTrainer, hook=None):
    trainer = trainer_class(cfg)
    trainer.register_hooks([hook] if hook else [])
    trainer.resume_or_load(resume=resume)
    return train_or_die(trainer, kill_at)


class Weights(HookBase):
    """Remembers the weights after each step, and those that training begins with."""

    def __init__(self):
        self.history, self.skipped = [], []

    def before_train(self):
        self.after_step()

    def after_step(self):
        self.history.append(copy.deepcopy(self.trainer.model.state_dict()))
        self.skipped.append(self.trainer.training_step.skipped_steps)


def slow_average(history, skipped, decay=DECAY):
    """The average by its definition, in float64; whole numbers are those of the last step that was made."""
    average = {name: value.double() for name, value in history[0].items()}
    for before, now, weights in zip(skipped, skipped[1:], history[1:], strict=False):
        if now > before:
            continue
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value.double()
            else:
                average[name] = value.double()
    return average


def metrics_lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]


def test_it_equals_its_definition_and_leaves_the_weights_and_regularizers_alone(tmp_path):
    keys = {"MODEL__REGULARIZERS__NAMES": ["toy"]}
    seen = Weights()
    averaged = train(ema_cfg(tmp_path / "a", **keys), hook=seen)
    plain = train(toy_cfg(tmp_path / "b", **keys))
    assert same_state(plain.model.state_dict(), averaged.model.state_dict())
    assert same_state(plain.optimizer.state_dict(), averaged.optimizer.state_dict())
    assert plain.average is None

    expected = slow_average(seen.history, seen.skipped)
    average = averaged.average.model.state_dict()
    assert {name for name in expected if not name.startswith("regularizers.")} == set(average)
    assert len(seen.history) == 7
    for name, value in average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)
        assert name == "backbone.1.num_batches_tracked" or not torch.equal(value, seen.history[-1][name])


def test_skipped_steps_leave_it_untouched(tmp_path):
    class Poisoned(ToyTrainer):
        poisoned_steps = (1, 3)

    seen = Weights()
    averaged = train(ema_cfg(tmp_path), trainer_class=Poisoned, hook=seen)
    assert seen.skipped[-1] == 2
    assert int(averaged.average.state_dict()["num_averaged"]) == 1 + 4
    expected = slow_average(seen.history, seen.skipped)
    for name, value in averaged.average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kill_at", [3, 5])
def test_killed_and_resumed_it_is_the_same_bit_for_bit(tmp_path, kill_at):
    name = register_toy_test_set(tmp_path, "toy_ema_resume")
    keys = {"DATASETS__TEST": (name,), "TEST__EVAL_PERIOD": 2, "TEST__BEST_METRIC": "ema/sem_seg/mIoU"}
    straight = train(ema_cfg(tmp_path / "a", **keys))
    train(ema_cfg(tmp_path / "b", **keys), kill_at=kill_at)
    resumed = train(ema_cfg(tmp_path / "b", **keys), resume=True)
    assert resumed.start_iter == 3
    assert same_state(straight.average.state_dict(), resumed.average.state_dict())
    for file in ("model_final.pth", "ema/model_final.pth", "ema/model_best.pth"):
        a, b = (load_file(str(tmp_path / run / file)) for run in "ab")
        assert same_state(a, b), file
    file = f"ema/evaluation/{name}.json"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_it_is_evaluated_beside_the_weights_and_later_as_any_checkpoint(tmp_path):
    names = tuple(register_toy_test_set(tmp_path, name, 2) for name in ("toy_ema_1", "toy_ema_2"))
    cfg = ema_cfg(tmp_path / "run", DATASETS__TEST=names, TEST__EVAL_PERIOD=2, TEST__NUM_IMAGES_SHOWN=1)
    trainer = train(cfg)
    plain = train(toy_cfg(tmp_path / "plain", DATASETS__TEST=names, TEST__EVAL_PERIOD=2))
    for name in names:
        assert set(trainer.results[name]) == {"sem_seg", "ema/sem_seg"}
        assert trainer.results[name]["sem_seg"] == plain.results[name]["sem_seg"]
        evaluations = [tmp_path / run / "evaluation" / f"{name}.json" for run in ("run", "plain", "run/ema")]
        raw, raw_without, averaged = (json.loads(file.read_text()) for file in evaluations)
        assert raw == raw_without
        assert averaged["metrics"]["mIoU"] == trainer.results[name]["ema/sem_seg"]["mIoU"]
        assert averaged["model"]["weights_sha256"] != raw["model"]["weights_sha256"]
        lines = {line["iteration"]: line for line in metrics_lines(tmp_path / "run")}
        assert [i for i, line in lines.items() if f"{name}/ema/sem_seg/mIoU" in line] == [1, 3, 6]
        assert lines[6][f"{name}/ema/sem_seg/mIoU"] == averaged["metrics"]["mIoU"]
    # What a run without an average has, it has unchanged.
    assert trainer.confusions.keys() == plain.confusions.keys()
    assert all((trainer.confusions[name] == plain.confusions[name]).all() for name in names)

    before = {file.name: file.read_bytes() for file in (tmp_path / "run/ema/evaluation").iterdir()}
    model = ToyTrainer.build_model(cfg)
    final = str(tmp_path / "run" / "ema" / "model_final.pth")
    rest = SafeCheckpointer(model, "").load_for_evaluation(final)
    assert same_state(model.state_dict(), trainer.average.model.state_dict())
    ToyTrainer.test(trainer.average.cfg, model, completed_steps=rest["iteration"] + 1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run/ema/evaluation").iterdir()} == before


def test_the_best_metric_of_the_average_keeps_the_averaged_weights(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_ema_best")
    kept = []

    class Keeps(HookBase):
        def after_step(self):
            kept.append(copy.deepcopy(self.trainer.average.model.state_dict()))

    keys = {"DATASETS__TEST": (name,), "TEST__EVAL_PERIOD": 1}
    best = "ema/sem_seg/mIoU"
    train(ema_cfg(tmp_path / "run", TEST__BEST_METRIC=best, **keys), hook=Keeps())
    scores = [line[best] for line in metrics_lines(tmp_path / "run") if best in line]
    file = load_file(str(tmp_path / "run" / "ema" / "model_best.pth"))
    assert file["iteration"] == scores.index(max(scores))
    assert same_state(file["model"], kept[file["iteration"]])
    assert not (tmp_path / "run" / "model_best.pth").exists()
    with pytest.raises(ConfigError, match="TEST.BEST_METRIC is 'ema/sem_seg/mIoU'.*SOLVER.EMA.ENABLED True"):
        ToyTrainer(toy_cfg(tmp_path / "off", TEST__BEST_METRIC=best, **keys))


def test_switched_on_at_a_resume_it_begins_there_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train(toy_cfg(tmp_path), kill_at=4)
    seen = Weights()
    trainer = train(ema_cfg(tmp_path), resume=True, hook=seen)
    assert "the run that is resumed had no average of its weights: it begins with those after step 3" in (
        caplog.text
    )
    expected = slow_average(seen.history, seen.skipped)
    for name, value in trainer.average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)


def test_switched_off_at_a_resume_the_run_goes_on_as_without(tmp_path, caplog):
    straight = train(toy_cfg(tmp_path / "a"))
    caplog.set_level(logging.WARNING)
    train(ema_cfg(tmp_path / "b"), kill_at=4)
    resumed = train(toy_cfg(tmp_path / "b"), resume=True)
    assert "WeightAverage" in caplog.text and "ignored" in caplog.text
    assert same_state(straight.model.state_dict(), resumed.model.state_dict())
    a, b = (load_file(str(tmp_path / name / "model_final.pth")) for name in "ab")
    assert same_state(a, b)


def test_an_average_of_another_network_is_one_error_that_names_the_file(tmp_path):
    train(ema_cfg(tmp_path), kill_at=4)
    path = tmp_path / "model_0000002.pth"
    content = torch.load(path, weights_only=False)
    content["trainer"]["hooks"]["WeightAverage"]["weights"]["backbone.0.weight"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(
        CheckpointError,
        match=r"model_0000002.pth': the average .* does not fit the network: backbone.0.weight",
    ):
        train(ema_cfg(tmp_path), resume=True)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0])
def test_a_decay_that_averages_nothing_is_refused(tmp_path, decay):
    with pytest.raises(ConfigError, match="SOLVER.EMA.DECAY is .* between 0 and 1"):
        ToyTrainer(toy_cfg(tmp_path, SOLVER__EMA__ENABLED=True, SOLVER__EMA__DECAY=decay))


def test_memories_are_taken_over_as_they_are(tmp_path):
    trainer = ToyTrainer(ema_cfg(tmp_path))
    trainer.model.sem_seg_head.memory = DistributionMemory(2, 3, 4, momentum=0.9)
    average = type(trainer.average)(trainer.cfg, trainer.model)
    average._update()
    memory = trainer.model.sem_seg_head.memory
    memory.distributions.normal_()
    memory.counts += 3
    trainer.model.sem_seg_head[1].weight.data.add_(1.0)
    before = average.model.sem_seg_head[1].weight.clone()
    average._update()
    assert torch.equal(average.model.sem_seg_head.memory.distributions, memory.distributions)
    assert torch.equal(average.model.sem_seg_head.memory.counts, memory.counts)
    torch.testing.assert_close(average.model.sem_seg_head[1].weight, before + (1 - DECAY) * 1.0)


class Shared(ToyTrainer):
    """Each process has batches of its own."""

    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        return ToyBatches(cfg, seed + 100 * comm.get_rank(), start_iter)


def averages_of_a_process(folder):
    keys = {"DATASETS__TEST": (register_toy_test_set(Path(folder).parent, "toy_ema_processes"),)}
    trainer = Shared(ema_cfg(folder, MODEL__REGULARIZERS__NAMES=["toy"], **keys))
    averages = []
    trainer.resume_or_load(resume=False)
    evaluate = trainer.evaluate

    def remember_and_evaluate():
        averages.append(copy.deepcopy(dict(trainer.average.model.named_parameters())))
        return evaluate()

    trainer.evaluate = remember_and_evaluate
    trainer.train()
    weights = unwrap_model(trainer.model).state_dict()
    return averages, trainer.average.model.state_dict(), weights, trainer.results


@pytest.mark.slow
def test_two_processes_have_the_same(tmp_path):
    first, second = run_processes(averages_of_a_process, 2, tmp_path, str(tmp_path / "run"))
    assert len(first[0]) == 1 and same_state(first[0], second[0])  # before buffers are shared for evaluation
    assert same_state(first[1], second[1])
    assert first[3] == second[3]
    assert not torch.equal(first[1]["backbone.0.weight"], first[2]["backbone.0.weight"])
    assert same_state(load_file(str(tmp_path / "run" / "ema" / "model_final.pth"))["model"], dict(first[1]))
