"""Lists of exact sizes in which each class has its share, and what belongs together stays together."""

import re

import numpy as np
import pytest

from regseg_d2.commands import split as command
from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.datasets.declared import read_declaration
from regseg_d2.dataset_tools.splitting import divide, split_dataset
from tests.data.data_helpers import write_toy
from tests.data.declarations import declare, declared


def holds_of(number, classes, seed):
    """Images that hold classes, of which the last is in few."""
    rng = np.random.default_rng(seed)
    return rng.random((number, classes)) < np.geomspace(0.9, 0.06, classes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1), (0.5, 0.25)])
def test_sizes_are_exact_and_classes_have_their_share(shares, seed):
    holds = holds_of(200, 8, seed)
    parts = divide(holds, shares, seed=seed)
    assert len({i for part in parts for i in part}) == sum(map(len, parts))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - 200 * share) <= 1
        assert (np.abs(holds[part].sum(0) - share * holds.sum(0)) <= np.maximum(2, 0.15 * holds.sum(0))).all()


def test_a_rare_class_is_in_every_part_where_chance_would_leave_it_out():
    holds = np.zeros((100, 3), dtype=bool)
    holds[:, 0] = True
    holds[:4, 2] = True  # four images in a hundred
    for seed in range(10):
        parts = divide(holds, (0.75, 0.25), seed=seed)
        assert [holds[part, 2].sum() for part in parts] == [3, 1]
        assert list(map(len, parts)) == [75, 25]
    # By chance alone a quarter has none of the four in a third of the draws.
    drawn = [holds[np.random.default_rng(s).permutation(100)[:25], 2].sum() for s in range(200)]
    assert 0.2 < np.mean(np.array(drawn) == 0) < 0.45


def test_groups_stay_together():
    holds = holds_of(120, 5, 1)
    groups = [f"film{i // 12}" for i in range(120)]
    parts = divide(holds, (0.8, 0.2), groups=groups, seed=0)
    assert list(map(len, parts)) == [96, 24]
    films = [{groups[i] for i in part} for part in parts]
    assert not films[0] & films[1] and len(films[0]) == 8


def test_the_same_seed_divides_alike():
    holds = holds_of(50, 4, 2)
    assert divide(holds, (0.5, 0.5), seed=3) == divide(holds, (0.5, 0.5), seed=3)
    assert divide(holds, (0.5, 0.5), seed=3) != divide(holds, (0.5, 0.5), seed=4)


def test_the_command_writes_lists_that_a_declaration_reads(tmp_path, monkeypatch, capsys):
    write_toy(tmp_path / "data", count=20, size=(4, 4))
    folders = {"images": "images", "labels": "labels"}
    file = declare(tmp_path, **folders, splits={"all": 1.0})
    monkeypatch.setattr(
        "sys.argv",
        ["", "--declared", str(file), "--parts", "train=0.8", "val=0.2", "--output", str(tmp_path / "lists")]
        + ["--workers", "0"],
    )
    with declared():
        command.main()
    printed = capsys.readouterr().out
    assert re.findall(r"(\w+)\.txt: (\d+) images", printed) == [("train", "16"), ("val", "4")]
    splits = printed.partition("In the declaration:\n")[2]
    mine = declare(tmp_path, splits=None)
    mine.write_text(mine.read_text() + splits)
    sizes = {spec.name: len(spec.load()) for spec in read_declaration(mine)}
    assert sizes == {"farm_train": 16, "farm_val": 4}
    with declared(), pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2 and "train.txt is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shares", "error", "message"),
    [
        ({"train": 0.9, "val": 0.2}, ConfigError, "sum of at most 1"),
        ({"train": 0.0}, ConfigError, "above 0"),
        ({"train": 0.99, "val": 0.01}, DatasetError, "'val' would be empty"),
    ],
)
def test_wrong_shares_are_refused_before_anything_is_written(tmp_path, shares, error, message):
    write_toy(tmp_path / "data", count=6, size=(4, 4))
    file = declare(tmp_path, images="images", labels="labels", splits={"all": 1.0})
    with declared(), pytest.raises(error, match=message):
        split_dataset([], shares, tmp_path / "lists", declared=[str(file)])
    assert not (tmp_path / "lists").exists()
