"""The demo: progress, failures, pictures, and one small run from end to end."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from regseg_d2.apps import demo
from regseg_d2.apps.compare import pictures
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.loader import load_records
from tests.data.data_helpers import COLORS, registered, toy_spec, write_toy

ROOT = Path(__file__).parents[2]


def end_with(message, log):
    log.write_text(message)
    sys.exit(1 if message else 0)


def make_training(folder, message=""):
    folder.mkdir()
    log = folder.with_suffix(".log")
    process = multiprocessing.get_context("fork").Process(target=end_with, args=(message, log))
    process.start()
    process.join()
    return demo.Training("toy", folder, process, log)


def test_completed_steps_come_from_whole_lines(tmp_path):
    training = make_training(tmp_path / "run")
    assert training.completed_steps() == 0
    lines = [json.dumps({"iteration": i}) + "\n" for i in (9, 19)]
    (training.folder / "metrics.json").write_text("".join(lines) + '{"iterat')
    assert training.completed_steps() == 20


def test_a_failed_training_stops_the_demo_with_the_end_of_its_log(tmp_path):
    fine = make_training(tmp_path / "fine")
    fine.raise_if_failed()
    failed = make_training(tmp_path / "failed", "no data set there")
    with pytest.raises(demo.TrainingFailed, match="exit code 1(.|\n)*no data set there"):
        demo.watch([fine, failed], max_iter=3)


def test_length_of_the_schedule_for_the_progress_bars():
    assert demo.read_max_iter(ROOT, []) == 1600
    assert demo.read_max_iter(ROOT, ["SOLVER.MAX_ITER", "7"]) == 7


def test_pictures_show_the_images_on_which_runs_differ_most(tmp_path, monkeypatch):
    write_toy(tmp_path / "data", count=3)
    with registered(toy_spec(tmp_path / "data")):
        files = [record["file_name"] for record in load_records("toy")]
        labels = [record["sem_seg_file_name"] for record in load_records("toy")]
        a = {file: np.zeros((20, 30), np.uint8) for file in files}
        b = {file: np.zeros((20, 30), np.uint8) for file in files}
        b[files[2]][:10] = 1
        b[files[1]][:2] = 2
        monkeypatch.setattr(pictures, "predict", lambda folder, name: {"a": a, "b": b}[folder.name])
        runs = {"first": Path("a"), "second": Path("b")}
        path = pictures.compare_predictions(runs, "toy", tmp_path / "out.png", count=2, scale=1)
        picture = cv2.imread(str(path))[28:, :, ::-1]
        assert picture.shape == (2 * 20, 4 * 30, 3)
        for row, index in enumerate((2, 1)):
            cells = [picture[20 * row : 20 * (row + 1), 30 * i : 30 * (i + 1)] for i in range(4)]
            assert np.array_equal(cells[0], read_image(files[index]))
            label = label_reader_for("toy")(labels[index])
            assert (cells[1][label == 1] == COLORS[1]).all()
            assert (cells[1][label == 255] == 0).all()
            assert (cells[2] == COLORS[0]).all()
            assert (cells[3][: 10 if index == 2 else 2] == COLORS[1 if index == 2 else 2]).all()
            assert (cells[3][10:] == COLORS[0]).all()


@pytest.mark.slow
def test_the_whole_demo_with_two_steps(tmp_path):
    overrides = ["SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", ""]
    command = [sys.executable, str(ROOT / "tools/demo_comparison.py"), "--output", str(tmp_path / "demo")]
    done = subprocess.run(
        [*command, *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout
    for text in ("cooccurrence_val", "cooccurrence_swapped", "drop", "not evidence of a gain", "paired runs"):
        assert text in printed
    assert (tmp_path / "demo" / "comparison.txt").read_text() in printed
    assert cv2.imread(str(tmp_path / "demo" / "side_by_side.png")).shape == (28 + 8 * 256, 4 * 256, 3)


@pytest.mark.slow
def test_a_wrong_override_ends_the_demo_with_its_reason(tmp_path):
    command = [sys.executable, str(ROOT / "tools/demo_comparison.py"), "--output", str(tmp_path / "demo")]
    done = subprocess.run(
        [*command, "SOLVER.MAX_ITERS", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "SOLVER.MAX_ITER" in done.stderr
