"""Training, killing, resuming, evaluating: on a toy network, to the bit."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventWriter, get_event_storage

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.config.files import format_config, load_config
from regseg_d2.drawing.sheets import GAP
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.hooks import truncate_metrics
from regseg_d2.engine.main import save_config, warn_about_changes
from regseg_d2.engine.step import NonFiniteLossError
from regseg_d2.engine.trainer import Trainer
from regseg_d2.engine.writers import WRITER
from regseg_d2.weights.reading import load_file
from tests.engine.toys import (
    ToySegmentor,
    ToyTrainer,
    register_toy_test_set,
    same_state,
    toy_cfg,
    train_or_die,
)


def train(cfg, *, resume=False, kill_at=None, trainer_class=ToyTrainer):
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    return train_or_die(trainer, kill_at)


def metrics_lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]


VARIANTS = {
    "sgd": {},
    "adamw-accum-regularizer": {
        "SOLVER__OPTIMIZER": "AdamW",
        "SOLVER__BASE_LR": 0.01,
        "SOLVER__ACCUM_STEPS": 2,
        "MODEL__REGULARIZERS__NAMES": ["toy"],
    },
    "multistep-bf16": {
        "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER__STEPS": (4,),
        "SOLVER__AMP__ENABLED": True,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kill_at", [3, 5])
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tmp_path, variant, kill_at):
    keys = VARIANTS[variant]
    straight = train(toy_cfg(tmp_path / "a", **keys))
    train(toy_cfg(tmp_path / "b", **keys), kill_at=kill_at)
    torch.rand(17)  # the state of the global generators must not matter
    resumed = train(toy_cfg(tmp_path / "b", **keys), resume=True)
    assert resumed.start_iter == 3
    assert same_state(straight.model.state_dict(), resumed.model.state_dict())
    assert same_state(straight.optimizer.state_dict(), resumed.optimizer.state_dict())
    a, b = (load_file(str(tmp_path / name / "model_final.pth")) for name in "ab")
    assert same_state(a, b)
    shown = ("iteration", "lr")  # losses are medians over a window that a new process begins anew
    lines = [[{k: line[k] for k in shown} for line in metrics_lines(tmp_path / name)] for name in "ab"]
    assert [line["iteration"] for line in lines[1]] == [0, 1, 2, 3, 4, 5]
    assert lines[0][3:] == lines[1][3:]


def test_writers_go_by_their_names(tmp_path):
    kept = []

    class Keeper(EventWriter):
        def write(self):
            kept.append(get_event_storage().iter)

    def keeper(cfg, start_iter, max_iter):
        assert (cfg.OUTPUT_DIR, start_iter, max_iter) == (str(tmp_path), 0, 6)
        return Keeper()

    WRITER.register(keeper)
    try:
        train(toy_cfg(tmp_path, WRITERS=["keeper"]))
    finally:
        del WRITER._obj_map["keeper"]
    assert kept and not list(tmp_path.glob("events.*"))
    assert len(metrics_lines(tmp_path)) == 6  # the tools read it
    with pytest.raises(ConfigError, match="WRITERS: unknown name 'keeper'; known are .*'metrics_json'"):
        train(toy_cfg(tmp_path, WRITERS=["keeper"]))


def test_dropout_differs_from_step_to_step_and_the_seed_decides(tmp_path):
    first = train(toy_cfg(tmp_path / "a")).model.state_dict()
    assert same_state(first, train(toy_cfg(tmp_path / "b")).model.state_dict())
    assert not same_state(first, train(toy_cfg(tmp_path / "c", SEED=8)).model.state_dict())


def test_a_drawn_seed_is_kept_on_resume_and_another_one_is_an_error(tmp_path):
    cfg = toy_cfg(tmp_path, SEED=-1)
    seed = train(cfg, kill_at=4).seed
    assert cfg.SEED == -1  # the given config is left alone
    assert train(cfg, resume=True).seed == seed
    with pytest.raises(ConfigError, match=f"a run keeps its seed. Set SEED {seed}"):
        train(toy_cfg(tmp_path, SEED=(seed + 1) % 2**31), resume=True)


def test_resume_uses_the_new_schedule_of_a_longer_run(tmp_path):
    train(toy_cfg(tmp_path))
    longer = train(toy_cfg(tmp_path, SOLVER__MAX_ITER=12), resume=True)
    assert longer.start_iter == 6
    lines = {line["iteration"]: line["lr"] for line in metrics_lines(tmp_path)}
    assert lines[6] == pytest.approx(0.1 * (1 - 6 / 12) ** 0.9)
    assert longer.completed_steps == 12
    with pytest.raises(ConfigError, match="from step 12, and SOLVER.MAX_ITER is 5"):
        train(toy_cfg(tmp_path, SOLVER__MAX_ITER=5), resume=True)


def test_resume_with_nothing_there_starts_at_zero(tmp_path):
    assert train(toy_cfg(tmp_path), resume=True).start_iter == 0


def test_a_new_run_over_an_old_one_is_said_and_never_resumed_as_the_old_one(tmp_path, caplog):
    train(toy_cfg(tmp_path))
    caplog.set_level(logging.WARNING)
    train(toy_cfg(tmp_path, SEED=8), kill_at=1)  # before its first periodic checkpoint
    assert "holds another run" in caplog.text
    resumed = train(toy_cfg(tmp_path, SEED=8), resume=True)
    assert resumed.start_iter == 1
    assert [line["iteration"] for line in metrics_lines(tmp_path)] == list(range(6))


def test_detectron2s_keys_that_would_do_nothing_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"TEST.PRECISE_BN.ENABLED is True, which is not supported"):
        ToyTrainer(toy_cfg(tmp_path, TEST__PRECISE_BN__ENABLED=True))
    with pytest.raises(ConfigError, match=r"TEST.AUG.MIN_SIZES is \[400\].*set TEST.AUG.SCALES"):
        ToyTrainer(toy_cfg(tmp_path, TEST__AUG__ENABLED=True, TEST__AUG__MIN_SIZES=(400,)))


def test_reference_world_size_scales_the_schedule(tmp_path):
    keys = {"SOLVER__REFERENCE_WORLD_SIZE": 2, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__STEPS": (4,)}
    trainer = ToyTrainer(toy_cfg(tmp_path, **keys))
    assert (trainer.max_iter, trainer.cfg.SOLVER.IMS_PER_BATCH, trainer.cfg.SOLVER.BASE_LR) == (12, 2, 0.05)


def test_resume_with_another_optimizer_is_an_error(tmp_path):
    train(toy_cfg(tmp_path, SOLVER__WEIGHT_DECAY_BIAS=0.5), kill_at=4)
    with pytest.raises(CheckpointError, match="optimizer does not fit"):
        train(toy_cfg(tmp_path), resume=True)


def test_skipped_steps_survive_a_kill(tmp_path):
    class Poisoned(ToyTrainer):
        poisoned_steps = (0, 1, 3, 4, 5)

    cfg = toy_cfg(tmp_path, SOLVER__MAX_NAN_STEPS=2)
    train(cfg, kill_at=3, trainer_class=Poisoned)
    trainer = Poisoned(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.training_step.skipped_steps == 2
    with pytest.raises(NonFiniteLossError, match="3 steps in a row"):
        trainer.train()
    assert trainer.completed_steps == 5  # steps 3 and 4 were skipped, step 5 was one too many


@pytest.mark.parametrize(
    ("poisoned", "fails"), [((0, 1, 2, 3, 4, 5), True), ((3, 4, 5), True), ((1, 2, 4, 5), False)]
)
def test_a_run_that_learns_nothing_to_its_end_fails(tmp_path, poisoned, fails):
    class Poisoned(ToyTrainer):
        poisoned_steps = poisoned

    cfg = toy_cfg(tmp_path, SOLVER__MAX_NAN_STEPS=10)
    if not fails:
        train(cfg, trainer_class=Poisoned)
    else:
        with pytest.raises(NonFiniteLossError, match=f"{len(poisoned)} of 6 steps were skipped"):
            train(cfg, trainer_class=Poisoned)
    assert (tmp_path / "model_final.pth").exists() != fails


def test_checkpoints_kept_and_tagged(tmp_path):
    train(
        toy_cfg(tmp_path, SOLVER__MAX_ITER=7, SOLVER__CHECKPOINT_PERIOD=2, SOLVER__CHECKPOINT_MAX_TO_KEEP=2)
    )
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert load_file(str(tmp_path / "model_final.pth"))["iteration"] == 6


def test_old_checkpoints_of_the_killed_run_are_cleared_away_too(tmp_path):
    keys = {"SOLVER__CHECKPOINT_PERIOD": 1, "SOLVER__CHECKPOINT_MAX_TO_KEEP": 2}
    train(toy_cfg(tmp_path, **keys), kill_at=3)
    train(toy_cfg(tmp_path, **keys), resume=True)
    assert sorted(p.name for p in tmp_path.glob("model_0*.pth")) == ["model_0000004.pth", "model_0000005.pth"]


# ----------------------------------------------------------------------------------------- evaluation


class ScriptedTrainer(ToyTrainer):
    """Evaluations return the next of ``scores``."""

    scores: list = []

    def evaluate(self):
        self.results = {"toy": {"sem_seg": {"mIoU": self.scores[self.completed_steps - 1]}}}
        return self.results


def scripted(tmp_path, scores, *, kill_at=None, resume=False, **keys):
    class Scripted(ScriptedTrainer):
        pass

    Scripted.scores = scores
    defaults = {"SOLVER__MAX_ITER": len(scores), "SOLVER__CHECKPOINT_PERIOD": 1, "TEST__EVAL_PERIOD": 1}
    cfg = toy_cfg(tmp_path, DATASETS__TEST=("toy",), **{**defaults, **keys})
    return train(cfg, kill_at=kill_at, resume=resume, trainer_class=Scripted)


def best_iteration(folder):
    return load_file(str(folder / "model_best.pth"))["iteration"]


def test_best_is_kept_and_survives_a_resume(tmp_path):
    nan = float("nan")
    scripted(tmp_path, [nan, 30.0, 20.0, 10.0], kill_at=2)
    assert best_iteration(tmp_path) == 1
    best = (tmp_path / "model_best.pth").read_bytes()
    scripted(tmp_path, [nan, 30.0, 20.0, 10.0], resume=True)
    assert (tmp_path / "model_best.pth").read_bytes() == best
    # A longer run that continues from the final checkpoint remembers it too.
    scripted(tmp_path, [nan, 30.0, 20.0, 10.0, 29.0, nan], resume=True)
    assert (tmp_path / "model_best.pth").read_bytes() == best
    scripted(tmp_path, [nan, 30.0, 20.0, 10.0, 29.0, nan, 31.0], resume=True)
    assert best_iteration(tmp_path) == 6
    # The final evaluation's score is in the final checkpoint.
    scripted(tmp_path, [nan, 30.0, 20.0, 10.0, 29.0, nan, 31.0, 30.5], resume=True)
    assert best_iteration(tmp_path) == 6


def test_nan_is_never_the_best(tmp_path):
    scripted(tmp_path, [float("nan")] * 3)
    assert not (tmp_path / "model_best.pth").exists()
    assert not any("sem_seg/mIoU" in line for line in metrics_lines(tmp_path))


def test_early_stop_after_patience_evaluations_without_gain(tmp_path):
    scores = [10.0, 20.0, 19.0, 20.0, 18.0, 50.0]
    trainer = scripted(tmp_path, scores, TEST__PATIENCE=3)
    assert trainer.completed_steps == 5
    assert "no better sem_seg/mIoU in 3 evaluations" in trainer.stop_reason
    assert trainer.finished
    assert load_file(str(tmp_path / "model_final.pth"))["iteration"] == 4
    assert best_iteration(tmp_path) == 1
    again = scripted(tmp_path, scores, TEST__PATIENCE=3, resume=True)
    assert again.completed_steps == 5  # it stays stopped


def test_no_early_stop_without_patience(tmp_path):
    assert scripted(tmp_path, [10.0, 9.0, 8.0, 7.0]).completed_steps == 4


def test_unknown_best_metric_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'sem_seg/mIoU'"):
        scripted(tmp_path, [1.0], TEST__BEST_METRIC="sem_seg/miou")


def test_evaluates_once_at_the_end_and_equals_a_later_evaluation_byte_for_byte(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_val")
    other = register_toy_test_set(tmp_path, "toy_other", count=2)
    cfg = toy_cfg(
        tmp_path / "run", DATASETS__TEST=(name, other), TEST__EVAL_PERIOD=0, TEST__NUM_IMAGES_SHOWN=2
    )
    trainer = train(cfg)
    assert list(trainer.results) == [name, other]
    folder = tmp_path / "run" / "evaluation"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == ["toy_other.json", "toy_val.json"]
    recorded = [line for line in metrics_lines(tmp_path / "run") if "toy_val/sem_seg/mIoU" in line]
    assert [line["iteration"] for line in recorded] == [6]

    model = ToyTrainer.build_model(cfg)
    rest = SafeCheckpointer(model, cfg.OUTPUT_DIR).load_for_evaluation(
        str(tmp_path / "run" / "model_final.pth")
    )
    results = ToyTrainer.test(cfg, model, completed_steps=rest["iteration"] + 1)
    assert results == trainer.results
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    report = json.loads(files["toy_val.json"])
    assert report["model"]["completed_steps"] == 6
    assert report["metrics"]["mIoU"] == results[name]["sem_seg"]["mIoU"]


def test_no_test_set_no_evaluation(tmp_path):
    trainer = train(toy_cfg(tmp_path))
    assert trainer.results == {}
    assert not (tmp_path / "evaluation").exists()


def test_evaluation_does_not_change_training(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_val2")
    plain = train(toy_cfg(tmp_path / "a"))
    evaluated = train(toy_cfg(tmp_path / "b", DATASETS__TEST=(name,), TEST__EVAL_PERIOD=1))
    assert same_state(plain.model.state_dict(), evaluated.model.state_dict())


def test_pictures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = register_toy_test_set(tmp_path, "toy_val3")
    train(toy_cfg(tmp_path / "run", DATASETS__TEST=(name,), TEST__NUM_IMAGES_SHOWN=2))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Tags()["images"] == ["toy_val3/0", "toy_val3/1", "toy_val3/confusion"]
    assert events.Images("toy_val3/0")[0].width == 3 * 256 + 2 * GAP  # image, label, prediction
    assert {"total_loss", "lr", "sem_seg/mIoU"} <= set(events.Tags()["scalars"])


# -------------------------------------------------------------------------------------------- the rest


def test_metrics_file_is_cut_where_the_run_continues(tmp_path):
    path = tmp_path / "metrics.json"
    truncate_metrics(path, 3)
    assert not path.exists()
    lines = [json.dumps({"iteration": i, "x": i}) + "\n" for i in range(5)]
    path.write_text("".join(lines) + '{"iteration": 5, "x"')
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])


def test_missing_gpu_is_a_warning_and_the_cpu(tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without GPU")
    caplog.set_level(logging.WARNING)
    cfg = toy_cfg(tmp_path, MODEL__DEVICE="cuda")
    trainer = ToyTrainer(cfg)
    assert trainer.cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.DEVICE == "cuda"
    assert "MODEL.DEVICE is cuda and torch finds no GPU" in caplog.text


def test_deterministic_switch(tmp_path):
    try:
        ToyTrainer(toy_cfg(tmp_path, DETERMINISTIC=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_config_is_saved_as_given_with_the_seed_of_the_run(tmp_path, caplog):
    cfg = toy_cfg(tmp_path, SEED=-1)
    save_config(cfg, seed=99)
    saved = load_config(str(tmp_path / "config.yaml"))
    assert saved.SEED == 99
    assert saved.MODEL.NORM == "auto"
    saved.SEED = -1
    assert format_config(saved) == format_config(cfg)
    caplog.clear()
    caplog.set_level(logging.WARNING)
    warn_about_changes(cfg)
    assert caplog.text == ""
    warn_about_changes(toy_cfg(tmp_path, SOLVER__BASE_LR=0.25))
    assert "SOLVER.BASE_LR: 0.1 -> 0.25" in caplog.text


def test_declarations_are_kept_and_compared(tmp_path, caplog):
    files = [tmp_path / "farm.yaml", tmp_path / "wood.yaml"]
    for file in files:
        file.write_text(f"name: {file.stem}\nclasses: [soil, crop]")
    cfg = toy_cfg(tmp_path / "run", DATASETS__DECLARED=[str(file) for file in files])
    (tmp_path / "run").mkdir()
    save_config(cfg, seed=1)
    copies = list(yaml.safe_load_all((tmp_path / "run" / "declared.yaml").read_text()))
    assert copies == [{"name": file.stem, "classes": ["soil", "crop"]} for file in files]
    caplog.clear()
    caplog.set_level(logging.WARNING)
    warn_about_changes(cfg)
    assert caplog.text == ""
    files[1].write_text("name: wood\nclasses: [crop, soil]\n")
    warn_about_changes(cfg)
    assert "-classes: [soil, crop]\n+classes: [crop, soil]" in caplog.text and "farm" not in caplog.text


def test_settings_of_the_run_are_logged_every_period(tmp_path):
    train(toy_cfg(tmp_path, LOG_PERIOD=4))
    lines = metrics_lines(tmp_path)
    assert [line["iteration"] for line in lines] == [3, 5]
    assert {"total_loss", "loss_sem_seg", "lr", "data_time", "skipped_steps"} <= set(lines[0])


class ToyMaskClassifier(ToySegmentor):
    """Reads masks, as far as its method tells."""

    def prepare_targets(self, targets, images):
        raise NotImplementedError


def test_a_mask_classifier_wants_masks_before_anything_is_read(tmp_path):
    META_ARCH_REGISTRY.register(ToyMaskClassifier)
    try:
        cfg = toy_cfg(tmp_path, MODEL__META_ARCHITECTURE="ToyMaskClassifier", SOLVER__MAX_ITER=1)
        message = "INPUT.CLASS_MASKS is False.*'ToyMaskClassifier'.*set INPUT.CLASS_MASKS True"
        with pytest.raises(ConfigError, match=message):
            Trainer(cfg).train()
        assert not list(tmp_path.iterdir())
        # With the key the mapper's samples have them, and the data set is looked for.
        cfg.INPUT.CLASS_MASKS = True
        with pytest.raises(ConfigError, match="toy_train"):
            Trainer(cfg).train()
        # A loader of one's own may have others.
        cfg.INPUT.CLASS_MASKS = False
        assert train(cfg).completed_steps == 1
    finally:
        del META_ARCH_REGISTRY._obj_map["ToyMaskClassifier"]
