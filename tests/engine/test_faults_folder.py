"""The folder of a run: what a failed start, a second trainer and ruined weights leave of it."""

import json
import logging
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regseg_d2.common.errors import CheckpointError, ConfigError, DiskFullError, UserError
from regseg_d2.engine.main import save_config, warn_about_changes
from regseg_d2.engine.run_lock import FolderInUseError, run_lock
from regseg_d2.engine.step import NonFiniteLossError
from regseg_d2.weights.reading import load_file
from tests.engine.full_disks import filled
from tests.engine.toys import ToySegmentor, ToyTrainer, register_toy_test_set, same_state, toy_cfg


def start(cfg, *, resume=False, trainer_class=ToyTrainer):
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class FailsAtFirst(ToyTrainer):
    """Its data cannot be read."""

    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        def loader():
            raise UserError("a file is gone")
            yield

        return loader()


@pytest.mark.parametrize(
    ("changes", "trainer_class"),
    [
        ({"MODEL__WEIGHTS": "misspelt.pth"}, ToyTrainer),
        ({"SOLVER__BASE_LR": float("nan")}, ToyTrainer),
        ({"SOLVER__BASE_LR": float("inf")}, ToyTrainer),
        ({"MODEL__SEM_SEG_HEAD__NAME": "NoHead"}, ToyTrainer),
        ({"SOLVER__OPTIMIZER": "Adagrad"}, ToyTrainer),
        ({}, FailsAtFirst),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_fails_leaves_a_finished_run_as_it_was(tmp_path, changes, trainer_class, resume):
    start(toy_cfg(tmp_path))
    before = files_of(tmp_path)
    if resume:
        changes = {**changes, "SOLVER__MAX_ITER": 12}
        if "MODEL__WEIGHTS" in changes:
            pytest.skip("a resumed run reads no other weights")
    with pytest.raises(UserError):
        start(toy_cfg(tmp_path, **changes), resume=resume, trainer_class=trainer_class)
    assert files_of(tmp_path) == before
    assert start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True).start_iter == 6


def test_a_start_on_a_full_disk_leaves_a_finished_run_as_it_was(small_disk):
    folder = small_disk / "run"
    start(toy_cfg(folder))
    before = files_of(folder)
    with filled(small_disk), pytest.raises(DiskFullError, match=r"A checkpoint takes .* MB, and the disk"):
        start(toy_cfg(folder, SEED=8))
    assert files_of(folder) == before
    assert start(toy_cfg(folder, SOLVER__MAX_ITER=8), resume=True).start_iter == 6


def test_without_its_tag_a_run_is_resumed_by_its_history_and_without_both_not_at_all(tmp_path):
    start(toy_cfg(tmp_path))
    (tmp_path / "last_checkpoint").unlink()
    assert start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True).start_iter == 6
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "checkpoint_history").unlink()
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"Other files there: model_0000002\.pth.*write its name into"):
        start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True)
    assert files_of(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(UserError, match=r"metrics\.json' is a folder, where a file of the run belongs"):
        start(toy_cfg(tmp_path))
    (tmp_path / "metrics.json").rmdir()
    (tmp_path / "last_checkpoint").mkdir()
    with pytest.raises(UserError, match="last_checkpoint' is a folder"):
        start(toy_cfg(tmp_path))


def test_two_trainings_do_not_share_a_folder_and_a_killed_one_leaves_it_free(tmp_path):
    code = (
        "import sys, time; from regseg_d2.engine.run_lock import run_lock\n"
        f"with run_lock({str(tmp_path)!r}): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match="another process trains in it"), run_lock(tmp_path):
            pass
        other.kill()
    with run_lock(tmp_path), pytest.raises(FolderInUseError), run_lock(tmp_path):
        pass


class Ruins(ToyTrainer):
    """One step makes the weights useless, though finite: all that follow are not finite."""

    ruined_at = 4

    def run_step(self):
        if self.iter == self.ruined_at:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(1e30)
        super().run_step()


def test_ruined_weights_push_no_good_checkpoint_out_and_the_error_names_it(tmp_path, caplog):
    cfg = toy_cfg(tmp_path, SOLVER__MAX_ITER=12, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__MAX_NAN_STEPS=5)
    with pytest.raises(NonFiniteLossError, match=r"last good checkpoint is .*model_0000003\.pth'; --resume"):
        start(cfg, trainer_class=Ruins)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000002.pth", "model_0000003.pth"]
    assert "NO CHECKPOINT after step 5" in caplog.text
    model = load_file(str(tmp_path / "model_0000003.pth"))["model"]
    assert all(value.isfinite().all() for value in model.values())
    assert start(cfg, resume=True).start_iter == 4


class Overflows(ToySegmentor):
    """Its losses stay finite, and a running statistic does not."""

    def forward(self, inputs):
        if self.training and any(sample.get("poison") for sample in inputs):
            with torch.no_grad():
                self.backbone[1].running_var.mul_(float("inf"))
            inputs = [{**sample, "poison": False} for sample in inputs]
        return super().forward(inputs)


def test_a_running_statistic_that_overflows_is_taken_back_with_its_step(tmp_path):
    class Poisoned(ToyTrainer):
        poisoned_steps = (2,)

        @classmethod
        def build_model(cls, cfg):
            return Overflows(cfg)

    trainer = start(toy_cfg(tmp_path), trainer_class=Poisoned)
    assert trainer.training_step.skipped_steps == 1
    assert trainer.model.backbone[1].running_var.isfinite().all()


def test_what_is_infinite_from_the_start_stops_no_step(tmp_path):
    class Marked(ToyTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = ToySegmentor(cfg)
            model.register_buffer("best", torch.full((2,), float("inf")))
            return model

    assert start(toy_cfg(tmp_path), trainer_class=Marked).training_step.skipped_steps == 0


def damaged(folder, change):
    path = folder / "model_final.pth"
    content = torch.load(path, weights_only=True)
    change(content["trainer"])
    torch.save(content, path)


def _other_shapes(state):
    for value in state["optimizer"]["state"].values():
        value["momentum_buffer"] = torch.zeros(3)


def _text_in_the_optimizer(state):
    state["optimizer"]["param_groups"][0]["momentum"] = "much"


def _whole_numbers(state):
    for value in state["optimizer"]["state"].values():
        value["momentum_buffer"] = value["momentum_buffer"].long()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_shapes, r"momentum_buffer of parameter 0 is torch.float32 \(3,\), the parameter"),
        (_whole_numbers, "momentum_buffer of parameter 0 is torch.int64"),
        (_text_in_the_optimizer, "momentum is 'much'"),
        (lambda state: state["optimizer"]["param_groups"].pop(), "groups of"),
        (lambda state: state.pop("completed_steps"), "cannot be used .KeyError: 'completed_steps'"),
        (lambda state: state.update(completed_steps="many"), "cannot be used .ValueError.*'many'"),
        (lambda state: state.update(completed_steps=-1), "completed_steps is -1"),
        (lambda state: state.update(optimizer=[1]), "cannot be used .TypeError"),
        (lambda state: state.update(training_step=None), "cannot be used .TypeError"),
        (
            lambda state: state.update(hooks={"ScheduleHook": {"last_epoch": "x"}}),
            "cannot be used .ValueError",
        ),
        (lambda state: state.update(hooks=3), "cannot be used .TypeError"),
        (lambda state: state.update(batches=[4]), "cannot be used .TypeError"),
        (lambda state: state.update(batches={"processes": 1}), "cannot be used .KeyError"),
        (lambda state: state.update(bad_files=5), "cannot be used .TypeError"),
    ],
)
def test_a_state_of_a_run_that_cannot_be_used_is_one_error_that_names_the_file(tmp_path, change, message):
    start(toy_cfg(tmp_path))
    damaged(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"model_final\.pth'.*{message}"):
        start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True)


def test_a_state_that_is_a_list_is_an_error_too(tmp_path):
    start(toy_cfg(tmp_path))
    path = tmp_path / "model_final.pth"
    torch.save({**torch.load(path, weights_only=True), "trainer": [1, 2]}, path)
    with pytest.raises(CheckpointError, match="cannot be used"):
        start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"A: [", b"- 1\n"])
def test_a_damaged_config_of_the_run_that_is_resumed_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        warn_about_changes(toy_cfg(tmp_path))


def test_an_empty_config_of_the_run_that_is_resumed_is_said(tmp_path, caplog):
    (tmp_path / "config.yaml").touch()
    caplog.set_level(logging.WARNING)
    warn_about_changes(toy_cfg(tmp_path))
    assert "is empty" in caplog.text


def test_the_first_checkpoint_of_a_run_in_anothers_folder_is_that_of_its_first_step(tmp_path):
    start(toy_cfg(tmp_path / "alone", SEED=8))
    start(toy_cfg(tmp_path / "both"))
    trainer = ToyTrainer(toy_cfg(tmp_path / "both", SEED=8, SOLVER__CHECKPOINT_MAX_TO_KEEP=0))
    trainer.resume_or_load(resume=False)
    trainer.on_first_step.append(lambda: save_config(trainer.cfg, seed=trainer.seed))
    trainer.train()
    history = (tmp_path / "both" / "checkpoint_history").read_text().split()
    assert history[0] == "model_0000000.pth"
    assert (tmp_path / "both" / "config.yaml").is_file()
    alone, both = (load_file(str(tmp_path / name / "model_final.pth")) for name in ("alone", "both"))
    assert same_state(alone["model"], both["model"])


def test_a_name_in_no_registry_names_its_key_and_what_is_near(tmp_path):
    with pytest.raises(ConfigError, match=r"SEM_SEG_HEAD.NAME: .*'ContextHed' \(did you mean 'ContextHead'"):
        ToyTrainer(toy_cfg(tmp_path, MODEL__SEM_SEG_HEAD__NAME="ContextHed"))


def test_a_network_that_would_train_without_its_regularizers_is_refused(tmp_path):
    cfg = toy_cfg(tmp_path, MODEL__META_ARCHITECTURE="SemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.NORM = cfg.MODEL.NORM = "BN"
    cfg.MODEL.REGULARIZERS.NAMES = ["CAR"]
    with pytest.raises(ConfigError, match="'SemanticSegmentor' builds no regularizers"):
        ToyTrainer(cfg)


def test_expected_results_of_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"EXPECTED_RESULTS is given, and DATASETS\.TEST is empty"):
        ToyTrainer(toy_cfg(tmp_path, TEST__EXPECTED_RESULTS=[["sem_seg", "mIoU", 40.0, 1.0]]))


def test_the_seed_in_the_log_is_the_one_that_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = start(toy_cfg(tmp_path, SEED=-1))
    caplog.clear()
    resumed = start(toy_cfg(tmp_path, SEED=-1, SOLVER__MAX_ITER=8), resume=True)
    assert resumed.seed == first.seed
    logged = [word for record in caplog.records for word in record.getMessage().split() if word.isdigit()]
    assert str(first.seed) in caplog.text
    assert not any(int(word) > 10_000 and int(word) != first.seed for word in logged)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    blocked = Path(tmp_path / "file")
    blocked.touch()
    with pytest.raises(UserError, match="cannot be written to"), run_lock(blocked / "run"):
        pass


OTHER_BATCHES = "THE RUN GOES ON WITH OTHER BATCHES"


def test_a_resumed_run_names_the_checkpoint_that_it_continues_from(tmp_path, caplog):
    start(toy_cfg(tmp_path))
    caplog.set_level(logging.INFO)
    start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8), resume=True)
    assert f"Continuing from '{tmp_path / 'model_final.pth'}', written after step 6." in caplog.text
    assert OTHER_BATCHES not in caplog.text


class Remembers(ToyTrainer):
    """Keeps the number of the first sample that it is given."""

    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        loader = super().build_train_loader(cfg, seed=seed, start_iter=start_iter)
        cls.first_sample = loader.number
        return loader


@pytest.mark.parametrize(
    ("changes", "changed", "first", "in_between"),
    [
        ({"SOLVER__IMS_PER_BATCH": 4}, "SOLVER.IMS_PER_BATCH: 2 -> 4", 24, "are left out"),
        ({"SOLVER__IMS_PER_BATCH": 1}, "SOLVER.IMS_PER_BATCH: 2 -> 1", 6, "are seen again"),
        ({"SOLVER__ACCUM_STEPS": 2}, "SOLVER.ACCUM_STEPS: 1 -> 2", 12, None),
        ({}, "processes: 2 -> 1", 12, None),
    ],
)
def test_a_run_that_is_resumed_with_other_batches_says_once_what_that_changes(
    tmp_path, caplog, changes, changed, first, in_between
):
    start(toy_cfg(tmp_path))
    if not changes:  # as two processes would have written it
        damaged(tmp_path, lambda state: state["batches"].update(processes=2))
    trainer = start(toy_cfg(tmp_path, SOLVER__MAX_ITER=8, **changes), resume=True, trainer_class=Remembers)
    (text,) = [r.getMessage() for r in caplog.records if OTHER_BATCHES in r.getMessage()]
    assert f"({changed})" in text and "not that of the uninterrupted run, bit for bit" in text
    assert trainer.first_sample == first
    if in_between:
        assert f"Step 6 begins with sample {first} of the order" in text and "not with 12" in text
        assert f"those in between {in_between}" in text and "it counts steps, not images" in text
    else:
        assert "Each step sees the samples that it would have seen" in text


def test_a_checkpoint_that_does_not_say_its_batches_is_resumed_without_a_word(tmp_path, caplog):
    start(toy_cfg(tmp_path))
    damaged(tmp_path, lambda state: state.pop("batches"))
    cfg = toy_cfg(tmp_path, SOLVER__MAX_ITER=8, SOLVER__IMS_PER_BATCH=4)
    assert start(cfg, resume=True).start_iter == 6
    assert OTHER_BATCHES not in caplog.text


def test_a_clock_that_goes_back_changes_nothing_but_the_times(tmp_path, monkeypatch):
    """Time servers set clocks; the monotonic ones do not go back, but then nothing shall depend on that."""
    keys = {"SOLVER__MAX_ITER": 30, "SOLVER__CHECKPOINT_PERIOD": 10, "TEST__EVAL_PERIOD": 10}
    keys["DATASETS__TEST"] = (register_toy_test_set(tmp_path, "toy_clock"),)
    start(toy_cfg(tmp_path / "straight", **keys))
    now = {"time": 2e9, "perf_counter": 1e6, "monotonic": 1e6}

    def clock(name):
        def going_back():
            now[name] -= 3600.0 if name == "time" else 0.5
            return now[name]

        return going_back

    with monkeypatch.context() as patch:
        for name in now:
            patch.setattr(time, name, clock(name))
        start(toy_cfg(tmp_path / "back", **keys))
        (tmp_path / "back" / "last_checkpoint").write_text("model_0000019.pth")
        resumed = start(toy_cfg(tmp_path / "back", **keys), resume=True)
    assert resumed.start_iter == 20 and now["time"] < 2e9 - 36_000 and now["perf_counter"] < 1e6 - 10
    straight, back = (load_file(str(tmp_path / name / "model_final.pth")) for name in ("straight", "back"))
    assert same_state(straight["model"], back["model"])
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("straight", "back")
    ]
    times = ("time", "eta_seconds", "data_time", "rank_data_time")
    kept = [[{k: v for k, v in line.items() if k not in times} for line in one] for one in lines]
    assert kept[0] == kept[1]
    assert all(math.isfinite(value) for line in lines[1] for value in line.values())
