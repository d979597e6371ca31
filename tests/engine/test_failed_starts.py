"""Starts that fail in the folder of a finished run, through the command line's ``main``, change nothing."""

import shutil

import pytest

from regseg_d2.common.errors import UserError
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from regseg_d2.engine.run_lock import run_lock
from regseg_d2.engine.trainer import Trainer
from tests.data.data_helpers import registered, toy_spec, write_toy
from tests.test_bad_input import CONFIG


def run(folder, *words, changes=None):
    arguments = ["--config-file", str(folder / "config.yaml"), *words, "OUTPUT_DIR", str(folder / "run")]
    with registered(toy_spec(folder, **(changes or {}))):
        return main(build_argument_parser().parse_args(arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write_toy(folder)
    (folder / "config.yaml").write_text(CONFIG)
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder):
    """What is in all files of the run but its log, which every start goes on with."""
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path.name not in ("log.txt", ".lock")}


def broken_yaml(folder, monkeypatch):
    (folder / "config.yaml").write_text(CONFIG + "SOLVER: [")
    return []


def misspelt_key(folder, monkeypatch):
    return ["SOLVR.MAX_ITER", "3"]


def misspelt_weights(folder, monkeypatch):
    return ["MODEL.WEIGHTS", "misspelt.pth"]


def weights_of_another_kind(folder, monkeypatch):
    (folder / "notes.pth").write_text("<html>not found</html>")
    return ["MODEL.WEIGHTS", str(folder / "notes.pth")]


def no_data_set(folder, monkeypatch):
    shutil.rmtree(folder / "images")
    return []


def unknown_data_set(folder, monkeypatch):
    return ["DATASETS.TRAIN", "('tory',)"]


def a_label_is_gone(folder, monkeypatch):
    next((folder / "labels").rglob("*.png")).unlink()
    return []


def other_class_count(folder, monkeypatch):
    return ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]


def wrong_tap(folder, monkeypatch):
    return ["MODEL.REGULARIZERS.CAR.FEATURES", "sem_seg_head.predictr:in"]


def unknown_head(folder, monkeypatch):
    return ["MODEL.SEM_SEG_HEAD.NAME", "NoHead"]


def unknown_regularizer(folder, monkeypatch):
    return ["MODEL.REGULARIZERS.NAMES", "['CARR']"]


def infinite_rate(folder, monkeypatch):
    return ["SOLVER.BASE_LR", ".inf"]


def interrupted_set_up(folder, monkeypatch):
    def interrupt(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "build_lr_scheduler", interrupt)
    return []


KINDS = [
    broken_yaml,
    misspelt_key,
    misspelt_weights,
    weights_of_another_kind,
    no_data_set,
    unknown_data_set,
    a_label_is_gone,
    other_class_count,
    wrong_tap,
    unknown_head,
    unknown_regularizer,
    infinite_rate,
    interrupted_set_up,
]


@pytest.mark.parametrize("flags", [[], ["--resume"]], ids=["anew", "resumed"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_start_that_fails_changes_nothing(kind, flags, folder, finished, monkeypatch):
    if flags and "weights" in kind.__name__:
        pytest.skip("a resumed run reads no other weights")
    before = contents(folder / "run")
    words = kind(folder, monkeypatch)
    with pytest.raises((UserError, KeyboardInterrupt)):
        run(folder, *flags, *words, "SOLVER.MAX_ITER", "3")
    assert contents(folder / "run") == before
    monkeypatch.undo()
    without_run = shutil.ignore_patterns("run")
    shutil.copytree(finished, folder, ignore=without_run, dirs_exist_ok=True)
    run(folder, "--resume", "SOLVER.MAX_ITER", "3")
    assert '"completed_steps": 3' in (folder / "run" / "evaluation" / "toy.json").read_text()


def test_a_second_trainer_changes_nothing(folder):
    before = contents(folder / "run")
    with run_lock(folder / "run"), pytest.raises(UserError, match="another process trains in it"):
        run(folder, "SOLVER.MAX_ITER", "3")
    assert contents(folder / "run") == before
