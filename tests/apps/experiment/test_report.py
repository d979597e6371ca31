"""The report of records: verdicts, the same bytes again, and what is missing or damaged."""

import json

import pytest

from regseg_d2.apps.experiment.report import write_report
from regseg_d2.apps.experiment.summary import summarize
from regseg_d2.common.errors import ConfigError
from tests.apps.experiment.synthetic import write_experiment

CHECK = {"arm": "baseline", "condition": "all", "factor": 2, "seeds": [0, 1]}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_planted_effect_is_a_gain_and_nothing_else_is(tmp_path):
    write_experiment(tmp_path / "r", {"good": 2.5, "bad": -3.0, "same": 0.0})
    write_report(tmp_path / "r", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    for arm, verdict in {"good": "gain", "bad": "loss", "same": "no difference shown"}.items():
        found = [line for line in text.splitlines() if line.startswith(f"| {arm} ") and verdict in line]
        assert found, (arm, text)
    assert {"plots/differences.svg", "plots/pairs.png", "tables/differences.csv"} <= set(
        contents(tmp_path / "out")
    )


def test_the_same_records_give_the_same_bytes_whatever_they_took(tmp_path):
    write_experiment(tmp_path / "r", {"arm": 1.0}, seeds=range(6))
    write_report(tmp_path / "r", tmp_path / "a")
    for path in (tmp_path / "r").rglob("seed*.json"):
        record = json.loads(path.read_text())
        record["run"] = {"seconds": 1.5, "host": "another"}
        path.write_text(json.dumps(record))
    write_report(tmp_path / "r", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(("seeds", "verdict"), [(5, "too few seeds"), (8, "gain")])
def test_one_sentence(tmp_path, seeds, verdict):
    write_experiment(tmp_path / "r", {"arm": 3.0}, seeds=range(seeds))
    sentence = summarize(tmp_path / "r", "arm")
    assert f"Over {seeds} paired runs" in sentence and sentence.endswith(f"{verdict}.")
    assert "arm changed mIoU on val by +" in sentence
    assert "no pairs of runs of other yet" in summarize(tmp_path / "r", "other")


def test_one_seed_and_long_names(tmp_path):
    names = {f"a_regularizer_with_a_very_long_name_{i}": 0.5 * i for i in range(12)}
    write_experiment(tmp_path / "r", names, seeds=[0])
    write_report(tmp_path / "r", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"| {name} " in text for name in names) and "too few seeds" in text


def test_arms_stand_in_the_order_of_the_file_but_after_their_control(tmp_path):
    folder = write_experiment(
        tmp_path / "r", {"zeta": 1, "alpha": 2, "beta": 3}, range(2), controls={"zeta": "beta"}
    )
    described = json.loads((folder / "experiment.json").read_text())
    for arms, expected in (
        (described["arms"], ["baseline", "beta", "zeta", "alpha"]),
        (dict(sorted(described["arms"].items())), ["baseline", "alpha", "beta", "zeta"]),
    ):
        described["arms"] = arms
        (folder / "experiment.json").write_text(json.dumps(described))
        write_report(folder, tmp_path / "out")
        for table, column in (("values", 4), ("means", 4), ("runs", 1)):
            lines = (tmp_path / "out" / "tables" / f"{table}.csv").read_text().splitlines()[1:]
            assert list(dict.fromkeys(line.split(",")[column] for line in lines)) == expected, table
        rows = (tmp_path / "out" / "report.md").read_text().partition("## Arms")[2].splitlines()
        assert [row.split()[1] for row in rows if row.startswith("| ")][-len(expected) :] == expected


def test_planned_arms_without_records_count_and_are_missing(tmp_path):
    """One of three planned methods is there, at six of eight seeds: no gain before the others are."""
    write_experiment(tmp_path / "r", {"good": 4.0}, seeds=range(6))
    path = tmp_path / "r" / "experiment.json"
    described = json.loads(path.read_text())
    write_report(tmp_path / "r", tmp_path / "alone")
    assert "**gain**: good" in (tmp_path / "alone" / "report.md").read_text()
    for name in ("second", "third"):
        described["arms"][name] = {"control": "baseline", "overrides": {}}
    seeds = list(range(8))
    described["conditions"]["all"]["planned"] = {
        arm: seeds for arm in ("baseline", "good", "second", "third")
    }
    path.write_text(json.dumps(described))
    write_report(tmp_path / "r", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**gain**" not in text and "too few seeds" in text
    assert "All pairs are complete" not in text
    assert any("second" in line and "0-7" in line for line in text.splitlines())
    assert any(
        "good" in line and "6, 7" in line or "good" in line and "6-7" in line for line in text.splitlines()
    )


def test_a_damaged_record_is_named_and_nothing_is_written(tmp_path):
    write_experiment(tmp_path / "r", {"arm": 1.0}, seeds=range(2))
    path = tmp_path / "r" / "all" / "arm" / "seed1.json"
    for damage in ("{", json.dumps({**json.loads(path.read_text()), "metrics": [1]})):
        path.write_text(damage)
        with pytest.raises(ConfigError, match="seed1.json"):
            write_report(tmp_path / "r", tmp_path / "out")
        path.write_text('{"version": 1}')
    assert not (tmp_path / "out").exists()
