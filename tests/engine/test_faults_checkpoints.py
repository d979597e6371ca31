"""Damaged checkpoints, full disks, batches that are not finite: what is lost, and what is said."""

import errno
import logging
import os
import re
from unittest.mock import Mock

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.common.errors import CheckpointError, ConfigError, DiskFullError, UserError
from regseg_d2.common.files import atomic_writer, write_text
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.checkpoint_history import announce_checkpoint, damage_of
from regseg_d2.engine.failures import DeadWorkerError, LostProcessError, explain_failure
from regseg_d2.engine.main import save_config
from regseg_d2.engine.nan_batches import NanBatchDumper
from regseg_d2.engine.step import NonFiniteLossError
from regseg_d2.weights.reading import load_file
from tests.engine.full_disks import filled
from tests.engine.toys import Killed, ToyTrainer, same_state, toy_cfg, train_or_die

PERIOD_1 = {"SOLVER__CHECKPOINT_PERIOD": 1}


def train(cfg, *, resume=False, until=None, trainer_class=ToyTrainer):
    """Trains, to step ``until`` as a killed process would."""
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    return train_or_die(trainer, until)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"/data/0") + 120] ^= 4  # in the first tensor; torch itself would read it
    path.write_bytes(data)


DAMAGES = {
    "cut off": _cut,
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a web page": lambda path: path.write_text("<html><body>404 Not Found</body></html>"),
    "one bit": _flip_a_bit,
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The final checkpoint of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("straight")
    train(toy_cfg(folder, **PERIOD_1))
    return load_file(str(folder / "model_final.pth"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_loudly(tmp_path, damage, caplog, straight):
    train(toy_cfg(tmp_path / "b", **PERIOD_1), until=4)
    assert (tmp_path / "b" / "last_checkpoint").read_text() == "model_0000003.pth"
    newest = tmp_path / "b" / "model_0000003.pth"
    assert damage_of(newest) is None
    DAMAGES[damage](newest)
    with caplog.at_level(logging.WARNING, logger="regseg_d2"):
        trainer = ToyTrainer(toy_cfg(tmp_path / "b", **PERIOD_1))
        trainer.resume_or_load(resume=True)
    assert trainer.completed_steps == 3
    (line,) = [r.getMessage() for r in caplog.records if "NOT CONTINUING FROM THE NEWEST" in r.getMessage()]
    assert f"'{newest}' is " in line and "model_0000002.pth" in line
    if damage == "a folder":
        newest.rmdir()  # it is in the way of the file that is written again
    trainer.train()
    assert same_state(load_file(str(tmp_path / "b" / "model_final.pth")), straight)


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"../other/model.pth", b"model_0000777.pth"])
def test_a_tag_that_names_nothing_falls_back_to_the_newest(tmp_path, content, caplog):
    train(toy_cfg(tmp_path, **PERIOD_1), until=4)
    (tmp_path / "last_checkpoint").write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="regseg_d2"):
        trainer = ToyTrainer(toy_cfg(tmp_path, **PERIOD_1))
        trainer.resume_or_load(resume=True)
    assert trainer.completed_steps == 4
    assert "model_0000003.pth" in caplog.text


def test_two_damaged_ones_leave_nothing_and_the_error_says_what_is_there(tmp_path):
    train(toy_cfg(tmp_path, **PERIOD_1), until=4)
    for number in (2, 3):
        _cut(tmp_path / f"model_{number:07d}.pth")
    torch.save({}, tmp_path / "copied.pth")
    with pytest.raises(CheckpointError) as info:
        train(toy_cfg(tmp_path, **PERIOD_1), resume=True)
    for text in ("no whole checkpoint", "model_0000003.pth' is damaged", "model_0000002.pth' is damaged"):
        assert text in str(info.value)
    assert "Other files there: copied.pth. To continue from one of them, write its name into" in str(
        info.value
    )
    (tmp_path / "copied.pth").unlink()
    with pytest.raises(CheckpointError, match="Start the run anew, without --resume"):
        train(toy_cfg(tmp_path, **PERIOD_1), resume=True)


def test_checkpoints_of_an_earlier_run_are_never_fallen_back_to(tmp_path):
    train(toy_cfg(tmp_path, **PERIOD_1), until=5)  # leaves 3 and 4
    train(toy_cfg(tmp_path, SOLVER__CHECKPOINT_PERIOD=2, SEED=8), until=3)  # writes 0 and 1
    assert (tmp_path / "checkpoint_history").read_text() == "model_0000000.pth\nmodel_0000001.pth\n"
    _cut(tmp_path / "model_0000000.pth")
    _cut(tmp_path / "model_0000001.pth")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        train(toy_cfg(tmp_path, SOLVER__CHECKPOINT_PERIOD=2, SEED=8), resume=True)


def test_history_names_what_is_there_once_in_the_order_of_writing(tmp_path):
    for name in ("a.pth", "b.pth", "c.pth"):
        (tmp_path / name).touch()
        announce_checkpoint(tmp_path, name)
    (tmp_path / "b.pth").unlink()
    announce_checkpoint(tmp_path, "a.pth")
    assert (tmp_path / "checkpoint_history").read_text() == "c.pth\na.pth\n"


@pytest.mark.parametrize("which", [0, 1], ids=["first checkpoint", "second"])
@pytest.mark.parametrize("moment", ["before its file", "before it is the last"])
def test_killed_beside_a_checkpoint_a_run_continues_from_what_is_there(
    tmp_path, monkeypatch, which, moment, straight
):
    folder, count = tmp_path / "run", [0]
    name = f"model_{which:07d}.pth"

    def replace(source, target, replace=os.replace):
        is_moment = target.name == name if moment == "before its file" else target.name == "last_checkpoint"
        count[0] += is_moment
        if is_moment and (moment == "before its file" or count[0] == which + 1):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("regseg_d2.common.files.os.replace", replace)
        train(toy_cfg(folder, **PERIOD_1))
    trainer = ToyTrainer(toy_cfg(folder, **PERIOD_1))
    trainer.resume_or_load(resume=True)
    first_is_there = which == 0 and moment == "before it is the last"
    assert trainer.completed_steps == (1 if which == 1 or first_is_there else 0)
    trainer.train()
    assert same_state(load_file(str(folder / "model_final.pth")), straight)


def test_killed_before_its_first_checkpoint_is_the_last_a_run_does_not_continue_the_one_before(
    tmp_path, monkeypatch
):
    train(toy_cfg(tmp_path, **PERIOD_1), until=3)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("regseg_d2.engine.checkpoint.tag_checkpoint", Mock(side_effect=Killed))
        train(toy_cfg(tmp_path, SEED=8, **PERIOD_1))
    trainer = ToyTrainer(toy_cfg(tmp_path, SEED=8, **PERIOD_1))
    trainer.resume_or_load(resume=True)
    assert trainer.completed_steps == 1


def test_what_a_killed_writer_left_is_never_picked(tmp_path):
    train(toy_cfg(tmp_path, **PERIOD_1), until=3)
    half = (tmp_path / "model_0000002.pth").read_bytes()[:1000]
    (tmp_path / ".model_0000003.pth.xyz.partial").write_bytes(half)
    trainer = train(toy_cfg(tmp_path, **PERIOD_1), resume=True, until=4)
    assert trainer.start_iter == 3
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_step_that_is_in_a_checkpoint_has_its_line_in_metrics_json(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path, **PERIOD_1))
    save, lines = trainer.checkpointer.save, []

    def save_and_look(name, **more):
        lines.append(len((tmp_path / "metrics.json").read_text().splitlines()))
        save(name, **more)

    trainer.checkpointer.save = save_and_look
    trainer.train()
    assert lines[:6] == [1, 2, 3, 4, 5, 6]


def test_there_is_always_one_to_fall_back_to(tmp_path):
    with pytest.raises(ConfigError, match="CHECKPOINT_MAX_TO_KEEP is 1; expected 2 or more"):
        ToyTrainer(toy_cfg(tmp_path, SOLVER__CHECKPOINT_MAX_TO_KEEP=1))


def test_evaluation_of_a_damaged_checkpoint_is_an_error(tmp_path):
    train(toy_cfg(tmp_path, **PERIOD_1))
    _cut(tmp_path / "model_final.pth")
    model = ToyTrainer.build_model(toy_cfg(tmp_path))
    with pytest.raises(CheckpointError, match="model_final.pth' is damaged"):
        SafeCheckpointer(model, str(tmp_path), save_to_disk=False).load_for_evaluation(
            str(tmp_path / "model_final.pth")
        )


# ------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("writer", ["checkpoint", "metrics.json", "best checkpoint"])
def test_a_full_disk_stops_the_run_and_the_last_checkpoint_is_whole(small_disk, straight, writer):
    keys = {**PERIOD_1, "LOG_PERIOD": 1 if writer == "metrics.json" else 1000}
    folder = small_disk / "run"
    trainer = ToyTrainer(toy_cfg(folder, **keys))
    trainer.resume_or_load(resume=False)
    step, full = trainer.run_step, filled(small_disk)

    def fill_behind_lines():
        with open(folder / "metrics.json", "a") as file:
            file.write("\n" * (4096 - file.tell() % 4096))  # no room in its last page either
        full.__enter__()

    def run_step():
        if trainer.iter == 3:
            if writer == "metrics.json":
                # The checkpoint of this step finds room, the line behind it none.
                trainer.checkpointer.save = lambda name, **more: fill_behind_lines()
            else:
                full.__enter__()
            if writer == "best checkpoint":
                trainer.checkpointer.save("model_best", tag=False, iteration=3)
        step()

    trainer.run_step = run_step
    with pytest.raises((DiskFullError, OSError)) as info:
        trainer.train()
    explained = explain_failure(info.value)
    assert isinstance(explained, DiskFullError)
    assert "disk, or your quota on it, is full" in str(explained) and "--resume" in str(explained)
    if writer != "metrics.json":
        assert f"{folder}/model_" in str(explained)
    assert (folder / "last_checkpoint").read_text() == "model_0000002.pth"
    assert damage_of(folder / "model_0000002.pth") is None
    assert not list(folder.glob(".*.partial"))
    full.__exit__(None, None, None)
    resumed = train(toy_cfg(folder, **keys), resume=True)
    assert resumed.start_iter == 3
    assert same_state(load_file(str(folder / "model_final.pth")), straight)


def test_files_of_a_run_keep_their_old_content_on_a_full_disk(small_disk):
    cfg = toy_cfg(small_disk / "run")
    save_config(cfg, seed=3)
    report = small_disk / "run" / "evaluation" / "toy.json"
    write_text(report, "{}")
    names = ("config.yaml", "environment.txt", "evaluation/toy.json")
    before = {path: path.read_bytes() for path in (small_disk / "run" / name for name in names)}
    with filled(small_disk):
        with pytest.raises(DiskFullError, match=r"config\.yaml' could not be written"):
            save_config(cfg, seed=4)
        with pytest.raises(DiskFullError, match=r"toy\.json' could not be written"):
            write_text(report, "x" * 100_000)
        with (
            pytest.raises(DiskFullError, match=r"big\.pth"),
            atomic_writer(small_disk / "big.pth", "wb") as file,
        ):
            torch.save({"x": torch.zeros(1_000_000)}, file)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.name for p in (small_disk / "run").iterdir()) == [
        "config.yaml",
        "environment.txt",
        "evaluation",
    ]


def test_lines_that_a_full_disk_left_in_metrics_json_are_cut(tmp_path):
    train(toy_cfg(tmp_path, **PERIOD_1), until=4)
    with open(tmp_path / "metrics.json", "ab") as file:
        file.write(b'{"iteration": 1, "x\xff\0\0\n\0\0\n')
    train(toy_cfg(tmp_path, **PERIOD_1), resume=True)
    text = (tmp_path / "metrics.json").read_text()
    assert "\0" not in text and len(text.splitlines()) == 6


# ------------------------------------------------------------------------------- what the system says


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (
            "DataLoader worker (pid 77) is killed by signal: Killed. ",
            DeadWorkerError,
            "process 77.*Killed.*NUM_WOR",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", DeadWorkerError, "7, 8.*ended unexpectedly"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible",
            DeadWorkerError,
            "/dev/shm",
        ),
        (
            "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:4",
            LostProcessError,
            "--dist-timeout",
        ),
        ("Timed out waiting 3000ms for recv operation to complete", LostProcessError, "does not answer"),
        ("mat1 and mat2 shapes cannot be multiplied", type(None), ""),
    ],
)
def test_what_torch_says_is_put_into_words(text, kind, said):
    explained = explain_failure(RuntimeError(text))
    assert type(explained) is kind
    assert re.search(said, str(explained))


def test_the_cause_behind_an_error_is_found():
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "x/metrics.json")
        finally:
            raise RuntimeError("unexpected pos")  # noqa: B012
    except RuntimeError as error:
        assert "'x/metrics.json' could not be written" in str(explain_failure(error))
    assert explain_failure(UserError("mine")).args == ("mine",)
    assert explain_failure(OSError(errno.EACCES, "no")) is None


# --------------------------------------------------------------------------------------- NaN batches


class Poisoned(ToyTrainer):
    poisoned_steps = (1, 3, 4)


def test_batches_that_are_not_finite_are_kept(tmp_path, caplog):
    trainer = train(toy_cfg(tmp_path, SOLVER__MAX_NAN_DUMPS=2, SOLVER__ACCUM_STEPS=2), trainer_class=Poisoned)
    folder = tmp_path / "nan_batches"
    assert sorted(p.name for p in folder.iterdir()) == ["0000001_rank0.pth", "0000003_rank0.pth"]
    dump = torch.load(folder / "0000003_rank0.pth", weights_only=True)
    assert (dump["iteration"], dump["seed"], dump["rank"], dump["world_size"]) == (3, 7, 0, 1)
    assert dump["not_finite"] == "losses"
    assert len(dump["passes"]) == 2
    losses = [one["losses"]["loss_sem_seg"] for one in dump["passes"]]
    assert all(value != value for value in losses)  # both passes are poisoned
    batches = Poisoned.build_train_loader(trainer.cfg, seed=7, start_iter=3)
    for one in dump["passes"]:
        (expected,) = next(batches)
        (kept,) = one["samples"]
        assert torch.equal(kept["image"], expected["image"]) and torch.equal(
            kept["sem_seg"], expected["sem_seg"]
        )
    assert f"torch.load('{folder}/0000001_rank0.pth')" in caplog.text


def test_the_batch_of_the_step_that_ends_the_run_is_kept_too(tmp_path):
    with pytest.raises(NonFiniteLossError):
        train(toy_cfg(tmp_path, SOLVER__MAX_NAN_STEPS=1), trainer_class=Poisoned)
    assert sorted(p.name[:7] for p in (tmp_path / "nan_batches").iterdir()) == [
        "0000001",
        "0000003",
        "0000004",
    ]


def test_no_dumps_where_none_are_wanted_or_all_is_well(tmp_path):
    train(toy_cfg(tmp_path / "a", SOLVER__MAX_NAN_DUMPS=0), trainer_class=Poisoned)
    train(toy_cfg(tmp_path / "b"))
    assert not list(tmp_path.glob("*/nan_batches"))


def test_a_process_whose_losses_are_fine_keeps_nothing_unless_it_is_the_gradients(tmp_path):
    dump = NanBatchDumper(tmp_path, 5, lambda: {"iteration": 4, "rank": 1})
    batch = [{"image": torch.zeros(3, 2, 2), "file_name": "x.png", "height": 2, "other": object()}]
    fine = {"loss": torch.tensor(1.0)}
    dump([batch], [fine], True)
    assert not list(tmp_path.iterdir())
    dump([batch], [fine], False)
    content = torch.load(tmp_path / "0000004_rank1.pth", weights_only=True)
    assert content["not_finite"] == "gradients"
    assert content["passes"][0]["samples"][0].keys() == {"image", "file_name", "height"}


def test_a_full_disk_in_a_dump_does_not_end_the_run(small_disk, caplog):
    dump = NanBatchDumper(small_disk / "nan", 5, lambda: {"iteration": 4, "rank": comm.get_rank()})
    with filled(small_disk):
        dump([[{"image": torch.zeros(99)}]], [{"loss": torch.tensor(float("nan"))}], True)
    assert "could not be kept: The disk" in caplog.text
    assert not os.path.exists(small_disk / "nan" / "0000004_rank0.pth")
