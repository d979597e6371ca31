"""A short run over every kind of files; ``python -m tests.fuzz --minutes 10`` is the long one."""

from itertools import islice

import pytest

from tests.fuzz.__main__ import inputs, main
from tests.fuzz.crashes import crash
from tests.fuzz.readers import READERS, read_any
from tests.fuzz.seeds import kinds
from tests.fuzz.worker import LimitedReader

INPUTS = 60


@pytest.fixture(scope="module")
def limited():
    with LimitedReader(read_any) as reader:
        yield reader


def outcome_of(reader, folder, kind, name, data):
    path = folder / kind / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return reader.read(path)


@pytest.mark.parametrize("kind", READERS)
def test_whole_files_are_read(tmp_path, limited, kind):
    refused = {"forged.pkl", "tuples.pkl"}
    if kind == "images":
        outcomes = {outcome_of(limited, tmp_path, kind, *item).kind for item in kinds()[kind].seeds.items()}
        assert outcomes <= {"accepted", "refused"}  # a photo is no label, and 16 bits are no photo
        return
    for name, data in kinds()[kind].seeds.items():
        outcome = outcome_of(limited, tmp_path, kind, name, data)
        assert outcome.kind == ("refused" if name in refused else "accepted"), (name, outcome)


@pytest.mark.parametrize("kind", READERS)
def test_only_our_errors_come_out(tmp_path, limited, kind):
    """The same files every time: a new finding must not stop somebody else's work."""
    for _, number, name, data in islice(inputs({kind: kinds()[kind]}, seed=0), INPUTS):
        outcome = outcome_of(limited, tmp_path, kind, name, data)
        assert outcome.is_right, (number, name, outcome)


@pytest.mark.parametrize(
    ("action", "kind"), [("die", "died"), ("memory", "crashed"), ("raise", "crashed"), ("loop", "endless")]
)
def test_what_goes_wrong_is_noticed(tmp_path, monkeypatch, action, kind):
    monkeypatch.setattr("tests.fuzz.worker._LONGEST_WAIT", 2.0)
    (tmp_path / "x.txt").write_text(action)
    with LimitedReader(crash) as reader:
        outcome = reader.read(tmp_path / "x.txt")
    assert outcome.kind == kind and not outcome.is_right


def test_the_command_line_keeps_what_broke(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.fuzz.__main__.read_any", crash)
    arguments = ["--minutes", "0.1", "--seed", "5", "--kinds", "counts", "--failures", str(tmp_path)]
    assert main(arguments) == 1
    assert "counts: " in capsys.readouterr().out
    assert (tmp_path / "counts" / "5_0_counts.json").is_file()
    assert "KeyError" in (tmp_path / "counts" / "5_0_counts.json.txt").read_text()
