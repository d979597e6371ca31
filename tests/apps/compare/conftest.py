"""Runs that a test writes, and the tool that compares them."""

import json
import sys

import pytest

from regseg_d2.apps.compare.runs import load_run
from regseg_d2.commands.compare import main
from regseg_d2.common.files import write_text
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.files import format_config
from tests.apps.compare.small_runs import CLASSES


@pytest.fixture
def make_run(tmp_path):
    def make(name, seed, scores, *, regularizers=(), pixels=(70, 30), steps=100, classes=CLASSES, **keys):
        """Writes a run whose IoU of (sky, car) on each data set is given."""
        cfg = get_regseg_cfg()
        cfg.SEED, cfg.OUTPUT_DIR = seed, f"output/{name}"
        cfg.DATASETS.TEST = tuple(scores)
        cfg.SOLVER.MAX_ITER = 100
        cfg.MODEL.REGULARIZERS.NAMES = list(regularizers)
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        write_text(tmp_path / name / "config.yaml", format_config(cfg))
        for dataset, ious in scores.items():
            defined = [iou for iou in ious if iou is not None]
            report = {
                "metrics": {"mIoU": sum(defined) / len(defined)},
                "classes": [
                    {"name": c, "IoU": iou, "pixels": p}
                    for c, iou, p in zip(classes, ious, pixels, strict=True)
                ],
                "num_images": 5,
                "protocol": "whole",
                "model": {"completed_steps": steps},
            }
            write_text(tmp_path / name / "evaluation" / f"{dataset}.json", json.dumps(report))
        return load_run(tmp_path / name)

    return make


@pytest.fixture
def compare_runs(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["regseg compare", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return call
