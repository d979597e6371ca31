"""The demo: progress, failures, pictures, and one small run from end to end."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from regseg_d2.apps import demo
from regseg_d2.drawing.sheets import CAPTION, GAP, TITLE

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
    height, width, _ = cv2.imread(str(tmp_path / "demo" / "side_by_side.png")).shape
    assert width == 4 * 256 + 3 * GAP
    assert height > TITLE + 8 * (CAPTION + 256 + GAP)  # and the legend


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
