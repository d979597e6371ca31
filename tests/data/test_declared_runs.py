"""Runs know the data sets that their config declares, wherever they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.config.files import format_config, load_config
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from tests.data.data_helpers import write_toy
from tests.data.declarations import declare, declared

ROOT = Path(__file__).parents[2]

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3]}
  SEM_SEG_HEAD: {NUM_CLASSES: 3, IN_FEATURES: [res3], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
DATASETS: {DECLARED: [data_sets/farm.yaml], TRAIN: [farm_train], TEST: [farm_val]}
INPUT: {CROP: {SIZE: [16, 16]}}
SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2}
DATALOADER: {NUM_WORKERS: 0}
"""


def test_paths_of_declarations(tmp_path, monkeypatch):
    (tmp_path / "configs" / "base").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    for name in ("configs/base/a.yaml", "configs/b.yaml", "work/b.yaml", "work/c.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path / "work")
    base = tmp_path / "configs" / "base" / "base.yaml"
    base.write_text("DATASETS: {DECLARED: [a.yaml, ../b.yaml, c.yaml, none.yaml]}")
    leaf = tmp_path / "configs" / "leaf.yaml"
    leaf.write_text("_BASE_: base/base.yaml")
    cfg = load_config(str(leaf))
    expected = ["configs/base/a.yaml", "configs/b.yaml", "work/c.yaml", "configs/base/none.yaml"]
    assert [str(tmp_path / name) for name in expected] == cfg.DATASETS.DECLARED
    cfg = load_config(str(leaf), ["DATASETS.DECLARED", "[b.yaml]"])
    assert [str(tmp_path / "work" / "b.yaml")] == cfg.DATASETS.DECLARED
    assert load_config(str(leaf), ["DATASETS.DECLARED", "[]"]).DATASETS.DECLARED == []
    (tmp_path / "saved.yaml").write_text(format_config(cfg))
    monkeypatch.chdir(tmp_path)
    assert [str(tmp_path / "work" / "b.yaml")] == load_config("saved.yaml").DATASETS.DECLARED
    with pytest.raises(ConfigError, match=r"expected a list, such as \[\]"):
        load_config("", ["DATASETS.DECLARED", "b.yaml"])


def _run(config_file, *options):
    return main(build_argument_parser().parse_args(["--config-file", str(config_file), *map(str, options)]))


def test_train_and_evaluate_from_the_saved_config(tmp_path, monkeypatch):
    write_toy(tmp_path / "data_sets" / "data", count=4)
    declare(tmp_path / "data_sets")
    (tmp_path / "config.yaml").write_text(CONFIG)
    output = tmp_path / "output"
    with declared():
        trained = _run(tmp_path / "config.yaml", "OUTPUT_DIR", output)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    with declared():
        evaluated = _run(output / "config.yaml", "--eval-only", *weights, "OUTPUT_DIR", tmp_path / "again")
    with pytest.raises(UserError, match='No data set is named "farm_train"'):
        _run(output / "config.yaml", "--eval-only", *weights, "DATASETS.DECLARED", "[]")
    scores = [results["farm_val"]["sem_seg"]["mIoU"] for results in (trained, evaluated)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_every_process_knows_the_data_sets(tmp_path):
    write_toy(tmp_path / "data_sets" / "data", count=4)
    declare(tmp_path / "data_sets")
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--num-gpus", "2", "--config-file"]
    run = subprocess.run(
        [*command, "config.yaml", "OUTPUT_DIR", "output"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "output" / "model_final.pth").is_file()
