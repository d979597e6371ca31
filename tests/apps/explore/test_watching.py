"""What is followed: each set of checkpoints once, until all are final."""

import json

import pytest

from regseg_d2.apps.explore import watching
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.json_files import read_json_lines
from regseg_d2.engine.trained_model import weights_of_run


def checkpoint(folder, name):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"weights")
    (folder / "last_checkpoint").write_text(name)


def follow(folders, events, write, monkeypatch):
    """Follows runs to which one event happens each time that is waited."""
    waiting = iter(events)
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(waiting)())
    watching.follow(folders, write, period=0, say=lambda line: None)
    assert next(waiting, None) is None


def test_each_checkpoint_is_looked_at_once(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    seen = []
    events = [
        lambda: checkpoint(first, "model_0000019.pth"),  # the other has none yet
        lambda: checkpoint(second, "model_0000019.pth"),
        lambda: None,
        lambda: checkpoint(first, "model_final.pth"),
        lambda: checkpoint(second, "model_final.pth"),
    ]
    write = lambda: seen.append([weights_of_run(folder).name for folder in (first, second)])  # noqa: E731
    follow([first, second], events, write, monkeypatch)
    assert seen == [
        ["model_0000019.pth"] * 2,
        ["model_final.pth", "model_0000019.pth"],
        ["model_final.pth"] * 2,
    ]


def test_a_checkpoint_that_goes_away_meanwhile_is_no_error(tmp_path, monkeypatch):
    checkpoint(tmp_path, "model_0000019.pth")
    calls = []

    def write():
        calls.append(weights_of_run(tmp_path).name)
        if len(calls) == 1:
            checkpoint(tmp_path, "model_final.pth")
            raise ConfigError("the file is gone")

    follow([tmp_path], [], write, monkeypatch)
    assert calls == ["model_0000019.pth", "model_final.pth"]


def test_an_error_that_stays_is_raised(tmp_path, monkeypatch):
    checkpoint(tmp_path, "model_0000019.pth")

    def write():
        raise ConfigError("other classes")

    with pytest.raises(ConfigError, match="other classes"):
        follow([tmp_path], [], write, monkeypatch)
    with pytest.raises(ConfigError, match="--watch follows runs"):
        follow([], [], write, monkeypatch)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"iteration": 1}) + "\n" + '{"iterat')
    assert read_json_lines(file, is_growing=True) == [{"iteration": 1}]
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_json_lines(file)


def test_weights_of_a_run(tmp_path):
    with pytest.raises(ConfigError, match="no model_final.pth and no checkpoint"):
        weights_of_run(tmp_path)
    checkpoint(tmp_path, "model_0000019.pth")
    assert weights_of_run(tmp_path).name == "model_0000019.pth"
