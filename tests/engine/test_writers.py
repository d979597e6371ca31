"""CSV, Weights & Biases and MLflow, offline: each number once, also over a kill and a resume."""

import csv
import importlib.util
import json

import pytest

from regseg_d2.common.errors import ConfigError
from tests.engine.toys import ToyTrainer, register_toy_test_set, toy_cfg, train_or_die

TIMES = {"time", "data_time", "eta_seconds"}


def train(folder, writers, *, resume=False, kill_at=None, **keys):
    name = register_toy_test_set(folder.parent, "toy_writers", 1)
    keys = {"DATASETS__TEST": (name,), "TEST__EVAL_PERIOD": 2, **keys}
    trainer = ToyTrainer(toy_cfg(folder, WRITERS=writers, **keys))
    trainer.resume_or_load(resume=resume)
    return train_or_die(trainer, kill_at)


def numbers_of_json(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {
        (row["iteration"], name): value
        for row in rows
        for name, value in row.items()
        if name != "iteration" and name not in TIMES
    }


def numbers_of_csv(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [(int(row["iteration"]), row["name"]) for row in rows]
    assert len(set(keys)) == len(keys)
    values = (float(row["value"]) for row in rows)
    return {key: value for key, value in zip(keys, values, strict=True) if key[1] not in TIMES}


def test_csv_has_the_numbers_of_json_and_each_once_after_a_resume(tmp_path):
    train(tmp_path / "a", ["csv"])
    assert numbers_of_csv(tmp_path / "a") == numbers_of_json(tmp_path / "a")
    assert {(5, "total_loss"), (3, "sem_seg/mIoU"), (6, "sem_seg/mIoU")} <= numbers_of_csv(
        tmp_path / "a"
    ).keys()
    train(tmp_path / "b", ["csv"], kill_at=5)
    with (tmp_path / "b" / "metrics.csv").open("a") as file:
        file.write("5,total_l")  # a full disk
    train(tmp_path / "b", ["csv"], resume=True)
    assert numbers_of_csv(tmp_path / "b") == numbers_of_csv(tmp_path / "a")
    # A new run in the folder begins a new table.
    train(tmp_path / "b", ["csv"], SEED=8, SOLVER__MAX_ITER=1)
    assert {step for step, _ in numbers_of_csv(tmp_path / "b")} == {0, 1}


def numbers_of_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "regseg_d2"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["SOLVER.BASE_LR"] == "0.1"
    found = [
        ((metric.step, name), metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    assert len(dict(found)) == len(found)
    return {key: value for key, value in found if key[1] not in TIMES}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_each_number_once_over_a_kill_a_resume_and_a_longer_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "run"
    train(folder, ["mlflow"], kill_at=5)
    train(folder, ["mlflow"], resume=True)
    assert numbers_of_mlflow(folder) == numbers_of_json(folder)
    train(folder, ["mlflow"], resume=True, SOLVER__MAX_ITER=8)
    numbers = numbers_of_mlflow(folder)
    assert {step for step, name in numbers if name == "total_loss"} == set(range(8))
    assert {step for step, name in numbers if name == "sem_seg/mIoU"} == {1, 3, 6, 8}


def records_of(file):
    """The records of a file of W&B: those of LevelDB's log behind seven bytes."""
    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its end
            yield record
            record = b""


def numbers_of_wandb(folder):
    """What ``wandb sync`` would send, of all parts of the run."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in records_of(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                found += [((row["_step"], k), v) for k, v in row.items() if k[0] != "_" and k not in TIMES]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_has_each_number_once_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    train(folder, ["wandb"], kill_at=5)
    first = json.loads((folder / "wandb.json").read_text())
    train(folder, ["wandb"], resume=True)
    second = json.loads((folder / "wandb.json").read_text())
    assert first["id"] == second["id"]
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert parts and all(part.name.endswith(first["id"]) for part in parts)
    numbers = numbers_of_json(folder)
    assert numbers_of_wandb(folder) == numbers
    assert {name for _, name in numbers} <= second["written"].keys()


@pytest.mark.parametrize(("writer", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_writer_whose_package_is_missing_is_refused_before_anything(tmp_path, monkeypatch, writer, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ConfigError, match=rf"WRITERS names '{writer}'.*pip install 'regseg_d2\[{writer}\]'"):
        train(tmp_path / "run", [writer])
    assert not (tmp_path / "run").exists()
