"""What a record takes from a run's folder."""

import json

import pytest

from regseg_d2.apps.experiment.records import collect_results
from regseg_d2.common.errors import UserError

EVALUATION = {
    "metrics": {"mIoU": 50.0},
    "classes": [{"name": "road", "IoU": 50.0, "pixels": 7}],
    "num_images": 1,
}
LINES = [{"iteration": 9, "total_loss": 1.5}, {"iteration": 10, "sem_seg/mIoU": 50.0}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "val.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def test_scores_curve_and_losses(folder):
    results = collect_results(folder, ["val"])
    assert results["metrics"] == {"val": {"mIoU": 50.0, "IoU": {"road": 50.0}}}
    assert results["curve"] == [{"iteration": 10, "val": 50.0}]
    assert results["losses"] == [{"iteration": 9, "total_loss": 1.5}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", b'{"iteration": 1}\n{"itera', r"metrics\.json' is not valid JSON"),
        ("metrics.json", b"[1]\n", "line 1 is no object"),
        ("metrics.json", b'{"iteration": "1"}\n', "without the number of its iteration"),
        ("metrics.json", b"\xff\n", r"metrics\.json' is not valid JSON"),
        ("metrics.json", b"[" * 100_000, "nested too deep"),
        ("metrics.json", None, "does not exist"),
        ("evaluation/val.json", b"{}", "metrics, classes, num_images are missing"),
        ("evaluation/val.json", b"null", "It is no evaluation of this package"),
        ("evaluation/val.json", None, "has no result on 'val'"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        collect_results(folder, ["val"])
