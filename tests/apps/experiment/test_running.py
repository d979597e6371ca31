"""An experiment from the command line: killed and called again, its records and its report are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from regseg_d2.apps.experiment.running import Options, work_off
from tests.engine.runs import ROOT, environment

TINY = ROOT / "experiments" / "tiny.yaml"


def command(file, output, *words):
    return [sys.executable, "tools/experiment.py", str(file), "--output", str(output), *words]


def copy_of_tiny(folder):
    folder.mkdir()
    text = TINY.read_text().replace("../configs", str(ROOT / "configs"))
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"


def call(file, output, *words, status=0, **variables):
    result = subprocess.run(
        command(file, output, *words),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def kill_after(file, output, condition):
    process = subprocess.Popen(
        command(file, output, "--jobs", "2"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(condition, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def contents(folder):
    """All files of the results; records without what differs between equal runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
            if path.name.startswith("seed"):
                record = json.loads(path.read_text())
                del record["run"]
                found[str(path.relative_to(folder))] = record
    return found


def checkpoints(output):
    return list(output.rglob("model_0*.pth"))


@pytest.mark.slow
def test_killed_twice_the_report_is_the_same_byte_for_byte(tmp_path):
    whole, killed = copy_of_tiny(tmp_path / "whole"), copy_of_tiny(tmp_path / "killed")
    call(whole, tmp_path / "a", "--jobs", "2")
    output = tmp_path / "b"
    kill_after(killed, output, lambda: checkpoints(output))
    done = len(list((tmp_path / "killed" / "tiny").rglob("seed*.json")))
    kill_after(killed, output, lambda: len(list((tmp_path / "killed" / "tiny").rglob("seed*.json"))) > done)
    assert 0 < len(list((tmp_path / "killed" / "tiny").rglob("seed*.json"))) < 6
    text = call(killed, output, "--jobs", "2")
    assert "[6/6]" in text
    first, second = contents(tmp_path / "whole" / "tiny"), contents(tmp_path / "killed" / "tiny")
    assert first == second
    assert len([name for name in first if "seed" in name]) == 6 and "report.md" in first
    assert not list(output.rglob("*.pth"))
    assert "6 of 6 runs are done" in call(killed, output)


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path):
    file = copy_of_tiny(tmp_path / "x")
    call(file, tmp_path / "out", "--only", "all/baseline/seed0")
    assert call(file, tmp_path / "out", "--list").count("done  ") == 1
    record = tmp_path / "x" / "tiny" / "all" / "baseline" / "seed0.json"
    whole = record.read_text()
    record.write_text(whole.replace(json.loads(whole)["commit"], "0123abc"))
    assert "--allow-commit-mix" in call(file, tmp_path / "out", "--list", status=2)
    call(file, tmp_path / "out", "--list", "--allow-commit-mix")
    record.write_text(whole)
    changed = file.read_text().replace("MAX_ITER: 20", "MAX_ITER: 21")
    text = file.read_text()
    file.write_text(changed)
    assert "has another config than" in call(file, tmp_path / "out", "--list", status=2)
    file.write_text(text)
    record.write_text(whole[:100])
    assert "seed0.json' is not valid JSON" in call(file, tmp_path / "out", "--list", status=2)


def test_a_run_that_fails_is_shown_with_the_end_of_its_log(tmp_path):
    file = copy_of_tiny(tmp_path / "x")
    file.write_text(file.read_text().replace("baseline: {}", "baseline: {overrides: {SOLVER.BASE_LRR: 1}}"))
    text = call(file, tmp_path / "out", "--only", "all/baseline/seed0", status=2)
    assert "SOLVER.BASE_LRR" in text and "did you mean" in text
    shutil.rmtree(Path(tmp_path / "x"))


def test_what_a_run_left_that_was_killed_beside_its_record_goes_and_kept_weights_stay(tmp_path):
    runs, output = [], tmp_path / "out"
    for name in ("killed", "kept"):
        record = tmp_path / f"{name}.json"
        record.write_text("{}")
        folder = output / name
        folder.mkdir(parents=True)
        (folder / "model_best.pth").touch()
        runs.append(Mock(record=record, folder=lambda output, name=name: output / name))
    (output / "killed" / "weights_are_removed").touch()
    work_off(runs, Options(output))
    assert list((output / "killed").iterdir()) == []
    assert (output / "kept" / "model_best.pth").is_file()
