"""tools/explore.py on runs of the command line: scores are the evaluation's."""

import csv
import json
import subprocess
import sys

import pytest

from tests.engine.main_job_matrix import ROOT, write_scene


def run(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_and_weights_of_a_config(tmp_path):
    config = write_scene(tmp_path)
    names = {"[]": "baseline", "[CAR]": "car"}
    for regularizers, name in names.items():
        options = ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", tmp_path / name]
        options += ["MODEL.REGULARIZERS.NAMES", regularizers]
        trained = run("tools/train_net.py", "--config-file", config, *options)
        assert trained.returncode == 0, trained.stderr
    runs = [tmp_path / name for name in names.values()]
    weights = ["--weights", "given", runs[1] / "config.yaml", runs[1] / "model_final.pth"]
    some = ["--images", "3", "--projections", "pca", "--output", tmp_path / "out"]
    done = run("tools/explore.py", *runs, *weights, *some)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "tables" / "metrics.csv", encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["baseline", "car", "given"]
    for name in names.values():
        evaluated = json.loads((tmp_path / name / "evaluation" / "tiles_val.json").read_text())["metrics"]
        assert float(rows[name]["mIoU"]) == pytest.approx(evaluated["mIoU"], rel=1e-5)
    assert {**rows["given"], "run": ""} == {**rows["car"], "run": ""}
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "MODEL.REGULARIZERS.NAMES" in page and "MODEL.WEIGHTS" not in page
    assert (tmp_path / "out" / "figures" / "losses.svg").is_file()

    wrong = run("tools/explore.py", *runs, "--tap", "sem_seg_head.predicor:in", *some)
    assert wrong.returncode == 2 and "sem_seg_head.predictor" in wrong.stderr
    other = run("tools/explore.py", *runs, "--dataset", "cooccurrence_val", *some)
    assert other.returncode == 2 and "was trained for 3" in other.stderr
