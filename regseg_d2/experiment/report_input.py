"""Reading of all that a report is made from: the experiment, the frequency of classes, the records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regseg_d2.errors import ConfigError
from regseg_d2.suggestions import did_you_mean

VERSION = 1


@dataclass(frozen=True)
class Record:
    """What is kept of a run.

    Attributes:
        file: where it was read from.
        condition: the setting it was run in.
        arm: what was run.
        seed: its seed.
        commit: of the code.
        config_digest: hash of all values that decide what comes out, the seed left out.
        iterations: length of the schedule.
        metrics: ``{data set: {metric: number}}``; None for a number that is not defined.
        iou: ``{data set: {class: percent or None}}``.
        curve: ``[{"iteration": i, data set: mIoU}]``.
        measures: ``{data set: {measure: number or None}}``.
        diagnostics: ``{"regularizer/key": number}``.
        skipped_steps: steps whose loss was not finite.
        seconds: wall time, or None.
    """

    file: Path
    condition: str
    arm: str
    seed: int
    commit: str
    config_digest: str
    iterations: int
    metrics: Mapping[str, Mapping[str, float | None]]
    iou: Mapping[str, Mapping[str, float | None]]
    curve: tuple[Mapping[str, float], ...]
    measures: Mapping[str, Mapping[str, float | None]]
    diagnostics: Mapping[str, float | None]
    skipped_steps: int
    seconds: float | None


@dataclass(frozen=True)
class Primary:
    """The one number that verdicts are about."""

    condition: str
    dataset: str
    metric: str


@dataclass(frozen=True)
class ScheduleCheck:
    """Runs of an arm with a longer schedule."""

    arm: str
    condition: str
    factor: int

    @property
    def longer(self) -> str:
        """The condition that the longer runs are recorded under."""
        return f"{self.condition}@x{self.factor}"


@dataclass(frozen=True)
class Results:
    """All that is known of an experiment.

    Attributes:
        name: of the experiment.
        primary: what verdicts are about.
        arms: ``{arm: its control, or None}``, an arm after its control.
        overrides: ``{arm: {config key: value}}``.
        conditions: names, the primary one first, without those of the schedule check.
        planned: ``{condition: {arm: seeds}}``; where the experiment names none, all seeds that some arm of
            the condition has.
        schedule_check: or None.
        class_shares: ``{training set: {class: share of its pixels}}``.
        records: by (condition, arm, seed), sorted.
    """

    name: str
    primary: Primary
    arms: Mapping[str, str | None]
    overrides: Mapping[str, Mapping[str, Any]]
    conditions: tuple[str, ...]
    planned: Mapping[str, Mapping[str, tuple[int, ...]]]
    schedule_check: ScheduleCheck | None
    class_shares: Mapping[str, Mapping[str, float]]
    records: Mapping[tuple[str, str, int], Record]

    def runs(self, condition: str, arm: str) -> dict[int, Record]:
        """The records of an arm in a condition, by seed."""
        return self._by_arm.get((condition, arm), {})

    @cached_property
    def _by_arm(self) -> dict[tuple[str, str], dict[int, Record]]:
        found: dict[tuple[str, str], dict[int, Record]] = {}
        for (condition, arm, seed), record in self.records.items():
            found.setdefault((condition, arm), {})[seed] = record
        return found

    def arms_of(self, condition: str) -> list[str]:
        """The arms that are run in a condition, an arm after its control."""
        return [arm for arm in self.arms if arm in self.planned[condition]]

    def methods_of(self, condition: str) -> list[str]:
        """The arms of a condition that are compared with a control."""
        return [arm for arm in self.arms_of(condition) if self.arms[arm] is not None]

    def datasets(self) -> list[str]:
        """All data sets that something was tested on, the primary one first."""
        names = {name for r in self.records.values() for name in (*r.metrics, *r.measures)}
        return sorted(names, key=lambda name: (name != self.primary.dataset, name))


class _Checked:
    """A JSON object whose values are checked as they are taken; every error names the file and the key."""

    def __init__(self, file: Path, data: Any, where: str = "") -> None:
        self.file = file
        self.where = where
        if not isinstance(data, dict):
            raise self.error("", data, "an object")
        self.data = data

    def error(self, key: str, value: Any, expected: str) -> ConfigError:
        name = ".".join(part for part in (self.where, key) if part) or "the content"
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        return ConfigError(f"{self.file}: {name} is {shown}; expected {expected}")

    def take(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = ...) -> Any:
        if key not in self.data and default is ...:
            raise ConfigError(f"{self.file}: {'.'.join(filter(None, (self.where, key)))} is missing")
        value = self.data.get(key, default)
        if value is default or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise self.error(key, value, expected)

    def text(self, key: str) -> str:
        return self.take(key, str, "a text")

    def count(self, key: str, default: Any = ...) -> int:
        expected = "a whole number from 0 on"
        value = self.take(key, (int, float), expected, default)
        if value < 0 or value != int(value):
            raise self.error(key, value, expected)
        return int(value)

    def part(self, key: str, default: Any = ...) -> _Checked:
        value = self.take(key, dict, "an object", default)
        return _Checked(self.file, value, ".".join(filter(None, (self.where, key))))

    def numbers(self) -> dict[str, float | None]:
        for key, value in self.data.items():
            if value is not None and not _is_number(value):
                raise self.error(key, value, "a finite number or null")
        return {key: None if value is None else float(value) for key, value in self.data.items()}


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    )  # NaN fails


def _load(file: Path) -> _Checked:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{file}' cannot be read ({error}): write it anew, or run its run again."
        ) from error
    return _Checked(file, data)


def read_results(folder: Path) -> Results:
    """Reads a folder of results: ``experiment.json``, ``classes.json``, ``<condition>/<arm>/seed<k>.json``.

    Args:
        folder: the folder.

    Raises:
        ConfigError: a file is missing, damaged, of another version, or does not fit the others.
    """
    folder = Path(folder)
    for name in ("experiment.json", "classes.json"):
        if not (folder / name).is_file():
            raise ConfigError(f"'{folder}' is no folder of results: it has no {name}.")
    described = _load(folder / "experiment.json")
    arms, overrides = _read_arms(described)
    conditions = described.part("conditions")
    primary = _read_primary(described.part("primary"), list(conditions.data))
    check = _read_check(described, arms, list(conditions.data))
    names = sorted(conditions.data, key=lambda name: name != primary.condition)
    known = {*names, *([check.longer] if check else [])}
    records = read_records(folder, described.text("name"), arms, known)
    shares = _load(folder / "classes.json")
    return Results(
        name=described.text("name"),
        primary=primary,
        arms=arms,
        overrides=overrides,
        conditions=tuple(names),
        planned={name: _planned(conditions.part(name), arms, name, records) for name in names},
        schedule_check=check,
        class_shares={name: shares.part(name).numbers() for name in shares.data},  # type: ignore[misc]
        records=records,
    )


def _read_arms(described: _Checked) -> tuple[dict[str, str | None], dict[str, dict[str, Any]]]:
    part = described.part("arms")
    entries = {name: part.part(name) for name in part.data}
    controls = {name: entry.take("control", str, "an arm or null", None) for name, entry in entries.items()}
    for name, control in controls.items():
        if control is not None and control not in controls:
            raise entries[name].error("control", control, f"one of {sorted(controls)}, or null")
    depth = {name: _steps_to_root(described, controls, name) for name in controls}
    overrides = {name: entry.part("overrides", {}).data for name, entry in entries.items()}
    return {name: controls[name] for name in sorted(controls, key=lambda each: depth[each])}, overrides


def _steps_to_root(described: _Checked, controls: Mapping[str, str | None], name: str) -> int:
    seen = [name]
    while (control := controls[seen[-1]]) is not None:
        if control in seen:
            raise described.error(
                "arms", [*seen, control], "controls that lead to a baseline, not in a circle"
            )
        seen.append(control)
    return len(seen)


def _read_primary(part: _Checked, conditions: list[str]) -> Primary:
    condition = part.text("condition")
    if condition not in conditions:
        raise part.error("condition", condition, f"one of {conditions}")
    return Primary(condition, part.text("dataset"), part.text("metric"))


def _read_check(described: _Checked, arms: Mapping[str, Any], conditions: list[str]) -> ScheduleCheck | None:
    if described.data.get("schedule_check") is None:
        return None
    part = described.part("schedule_check")
    for key, known in (("arm", list(arms)), ("condition", conditions)):
        if part.text(key) not in known:
            raise part.error(key, part.data[key], f"one of {known}")
    return ScheduleCheck(part.text("arm"), part.text("condition"), part.count("factor"))


def _planned(
    condition: _Checked, arms: Mapping[str, Any], name: str, records: Mapping[tuple[str, str, int], Record]
) -> dict[str, tuple[int, ...]]:
    """Who is run in a condition, and with which seeds."""
    there: dict[str, set[int]] = {}
    for where, arm, seed in records:
        if where == name:
            there.setdefault(arm, set()).add(seed)
    planned = condition.take("planned", dict, "an object of arms and their seeds", None)
    if planned is None:
        every = tuple(sorted(set().union(*there.values())))
        return {arm: every for arm in arms if arm in there}
    for arm, seeds in planned.items():
        if arm not in arms:
            raise condition.error("planned", arm, f"some of {sorted(arms)}")
        if seeds is not None and not (isinstance(seeds, list) and all(type(seed) is int for seed in seeds)):
            raise condition.error(f"planned.{arm}", seeds, "a list of seeds, or null for runs that exist")
    # Existing runs are planned as far as they are there.
    return {
        arm: tuple(sorted(there.get(arm, ()) if seeds is None else seeds)) for arm, seeds in planned.items()
    }


def read_records(
    folder: Path, experiment: str, arms: Mapping[str, str | None], conditions: set[str]
) -> dict[tuple[str, str, int], Record]:
    """Reads all records of a folder.

    Args:
        folder: with ``<condition>/<arm>/seed<k>.json``.
        experiment: name that every record must have.
        arms: ``{arm: control}`` that records must agree with. A record of another arm is an error: what was
            run is shown.
        conditions: names that may occur.

    Returns:
        Records by (condition, arm, seed), in sorted order.

    Raises:
        ConfigError: a record is damaged, or does not fit.
    """
    records = {}
    for file in folder.glob("*/*/seed*.json"):
        record = _read_record(file, experiment, arms, conditions)
        records[record.condition, record.arm, record.seed] = record
    return {key: records[key] for key in sorted(records)}


def _read_record(file: Path, experiment: str, arms: Mapping[str, str | None], conditions: set[str]) -> Record:
    checked = _load(file)
    version = checked.count("version")
    if version != VERSION:
        raise checked.error(
            "version", version, f"{VERSION}, which this code reads; delete it or use its code"
        )
    if checked.text("experiment") != experiment:
        raise checked.error("experiment", checked.text("experiment"), f"{experiment!r}; move the file away")
    condition, arm, seed = checked.text("condition"), checked.text("arm"), checked.count("seed")
    for key, value, known in (("condition", condition, conditions), ("arm", arm, arms)):
        if value not in known:
            hint = did_you_mean(value, known) or f"one of {sorted(known)}"
            raise checked.error(
                key,
                value,
                f"what experiment.json names{hint if hint.startswith(' (') else ': ' + hint}. "
                "Name it in the experiment's file too, or move the record away",
            )
    if file.relative_to(file.parents[2]).as_posix() != f"{condition}/{arm}/seed{seed}.json":
        raise ConfigError(f"{file}: it says that it is {condition}/{arm}/seed{seed}.json: name it so")
    control = checked.take("control", str, "an arm or null", None)
    if control != arms[arm]:
        raise checked.error("control", control, f"{arms[arm]!r}, as in experiment.json")
    metrics, iou = _read_metrics(checked.part("metrics"))
    measures = checked.part("measures", {})
    curve = checked.take("curve", list, "a list", [])
    points = tuple(_Checked(file, point, f"curve[{i}]").numbers() for i, point in enumerate(curve))
    for i, point in enumerate(points):
        if point.get("iteration") is None:
            raise checked.error(f"curve[{i}]", curve[i], 'an object with "iteration"')
    return Record(
        file=file,
        condition=condition,
        arm=arm,
        seed=seed,
        commit=checked.text("commit"),
        config_digest=checked.text("config_digest"),
        iterations=checked.count("iterations"),
        metrics=metrics,
        iou=iou,
        curve=tuple({k: v for k, v in point.items() if v is not None} for point in points),
        measures={name: measures.part(name).numbers() for name in measures.data},
        diagnostics=checked.part("diagnostics", {}).numbers(),
        skipped_steps=checked.count("skipped_steps", 0),
        seconds=_Checked(file, checked.part("run", {}).data, "run").take(
            "seconds", (int, float), "a number", None
        ),
    )


def _read_metrics(
    part: _Checked,
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, float | None]]]:
    metrics, iou = {}, {}
    for dataset in part.data:
        entry = part.part(dataset)
        iou[dataset] = entry.part("IoU", {}).numbers()
        scalars = {key: value for key, value in entry.data.items() if key != "IoU"}
        metrics[dataset] = _Checked(part.file, scalars, entry.where).numbers()
    return metrics, iou
