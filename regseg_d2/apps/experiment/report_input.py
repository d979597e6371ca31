"""Reading of all that a report is made from: the experiment, the frequency of classes, the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regseg_d2.apps.experiment.checked_json import Checked, load
from regseg_d2.apps.experiment.records import Record, read_record
from regseg_d2.apps.experiment.spec import ScheduleCheck
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean


@dataclass(frozen=True)
class Primary:
    """The one number that verdicts are about."""

    condition: str
    dataset: str
    metric: str


@dataclass(frozen=True)
class Results:
    """All that is known of an experiment.

    Attributes:
        name: of the experiment.
        primary: what verdicts are about.
        arms: ``{arm: its control, or None}`` in the order of ``experiment.json``, but an arm after its
            control.
        overrides: ``{arm: {config key: value}}``.
        conditions: names, the primary one first, without those of the schedule check.
        planned: ``{condition: {arm: seeds}}``; where the experiment names none, all seeds that some arm of
            the condition has.
        schedule_check: or None.
        class_shares: ``{training set: {class: share of its pixels}}``.
        records: by (condition, arm, seed), in this order; those of the schedule check last.
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
        """The arms that are run in a condition, in the order of ``arms``."""
        return [arm for arm in self.arms if arm in self.planned[condition]]

    def methods_of(self, condition: str) -> list[str]:
        """The arms of a condition that are compared with a control."""
        return [arm for arm in self.arms_of(condition) if self.arms[arm] is not None]

    def datasets(self) -> list[str]:
        """All data sets that something was tested on, the primary one first."""
        names = {name for r in self.records.values() for name in (*r.metrics, *r.measures)}
        return sorted(names, key=lambda name: (name != self.primary.dataset, name))


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
    described = load(folder / "experiment.json")
    arms, overrides = _read_arms(described)
    conditions = described.part("conditions")
    primary = _read_primary(described.part("primary"), list(conditions.data))
    check = _read_check(described, arms, list(conditions.data))
    names = sorted(conditions.data, key=lambda name: name != primary.condition)
    known = [*names, *([check.name] if check else [])]
    records = read_records(folder, described.text("name"), arms, known)
    shares = load(folder / "classes.json")
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


def _read_arms(described: Checked) -> tuple[dict[str, str | None], dict[str, dict[str, Any]]]:
    part = described.part("arms")
    entries = {name: part.part(name) for name in part.data}
    controls = {name: entry.take("control", str, "an arm or null", None) for name, entry in entries.items()}
    for name, control in controls.items():
        if control is not None and control not in controls:
            raise entries[name].error("control", control, f"one of {sorted(controls)}, or null")
    ordered: dict[str, str | None] = {}
    for name in controls:
        path: list[str] = []
        each: str | None = name
        while each is not None and each not in ordered:
            if each in path:
                raise described.error(
                    "arms", [*path, each], "controls that lead to a baseline, not in a circle"
                )
            path.append(each)
            each = controls[each]
        ordered.update({arm: controls[arm] for arm in reversed(path)})
    return ordered, {name: entry.part("overrides", {}).data for name, entry in entries.items()}


def _read_primary(part: Checked, conditions: list[str]) -> Primary:
    condition = part.text("condition")
    if condition not in conditions:
        raise part.error("condition", condition, f"one of {conditions}")
    return Primary(condition, part.text("dataset"), part.text("metric"))


def _read_check(described: Checked, arms: Mapping[str, Any], conditions: list[str]) -> ScheduleCheck | None:
    if described.data.get("schedule_check") is None:
        return None
    part = described.part("schedule_check")
    for key, known in (("arm", list(arms)), ("condition", conditions)):
        if part.text(key) not in known:
            raise part.error(key, part.data[key], f"one of {known}")
    seeds = tuple(part.take("seeds", list, "a list of seeds", []))
    return ScheduleCheck(part.text("arm"), part.text("condition"), part.count("factor"), seeds)


def _planned(
    condition: Checked, arms: Mapping[str, Any], name: str, records: Mapping[tuple[str, str, int], Record]
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
    folder: Path, experiment: str, arms: Mapping[str, str | None], conditions: list[str]
) -> dict[tuple[str, str, int], Record]:
    """Reads all records of a folder.

    Args:
        folder: with ``<condition>/<arm>/seed<k>.json``.
        experiment: name that every record must have.
        arms: ``{arm: control}`` that records must agree with. A record of another arm is an error: what was
            run is shown.
        conditions: names that may occur.

    Returns:
        Records by (condition, arm, seed), in the order of conditions, arms and seeds.

    Raises:
        ConfigError: a record is damaged, or does not fit.
    """
    records = {}
    for file in folder.glob("*/*/seed*.json"):
        record = read_record(file)
        _require_fit(record, experiment, arms, conditions)
        records[record.condition, record.arm, record.seed] = record
    places = {name: i for i, name in enumerate(arms)}
    ordered = sorted(records, key=lambda key: (conditions.index(key[0]), places[key[1]], key[2]))
    return {key: records[key] for key in ordered}


def _require_fit(
    record: Record, experiment: str, arms: Mapping[str, str | None], conditions: list[str]
) -> None:
    def error(key: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{record.file}: {key} is {value!r}; expected {expected}")

    if record.experiment != experiment:
        raise error("experiment", record.experiment, f"{experiment!r}; move the file away")
    for key, value, known in (("condition", record.condition, conditions), ("arm", record.arm, arms)):
        if value not in known:
            hint = did_you_mean(value, known) or f": one of {sorted(known)}"
            raise error(
                key,
                value,
                f"what experiment.json names{hint}. Name it in the experiment's file too, or move the record "
                "away",
            )
    name = f"{record.condition}/{record.arm}/seed{record.seed}.json"
    if record.file.relative_to(record.file.parents[2]).as_posix() != name:
        raise ConfigError(f"{record.file}: it says that it is {name}: name it so")
    if record.control != arms[record.arm]:
        raise error("control", record.control, f"{arms[record.arm]!r}, as in experiment.json")
