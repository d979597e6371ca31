"""Reading of all that a report is made from: the experiment, the frequency of classes, the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regseg_d2.apps.experiment.records import Record, read_checked, read_record
from regseg_d2.apps.experiment.spec import Arm, Primary, ScheduleCheck
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.schema import Number, Part, Whole, require_known
from regseg_d2.common.suggestions import did_you_mean


@dataclass(frozen=True)
class Results:
    """All that is known of an experiment.

    Attributes:
        arms: ``{arm: its control, or None}`` in the order of ``experiment.json``, but an arm after its
            control.
        overrides: ``{arm: {config key: value}}``.
        conditions: names, the primary one first, without those of the schedule check.
        planned: ``{condition: {arm: seeds}}``; where the experiment names none, all seeds that some arm of
            the condition has.
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


class _Condition(Part):
    # None in an old file; the seeds are None for an arm of runs that existed.
    planned: dict[str, tuple[Whole, ...] | None] | None = None


class _Description(Part):
    """``experiment.json``."""

    name: str
    primary: Primary
    arms: dict[str, Arm]
    conditions: dict[str, _Condition]
    schedule_check: ScheduleCheck | None = None


def read_results(folder: Path) -> Results:
    """Reads a folder of results: ``experiment.json``, ``classes.json``, ``<condition>/<arm>/seed<k>.json``.

    Raises:
        ConfigError: a file is missing, damaged, of another version, or does not fit the others.
    """
    folder = Path(folder)
    for name in ("experiment.json", "classes.json"):
        if not (folder / name).is_file():
            raise ConfigError(f"'{folder}' is no folder of results: it has no {name}.")
    file = folder / "experiment.json"
    described: _Description = read_checked(_Description, file)
    arms = _ordered_arms(file, described.arms)
    primary, check = described.primary, described.schedule_check
    require_known(file, "primary.condition", primary.condition, described.conditions)
    if check is not None:
        require_known(file, "schedule_check.arm", check.arm, arms)
        require_known(file, "schedule_check.condition", check.condition, described.conditions)
    names = sorted(described.conditions, key=lambda name: name != primary.condition)
    records = read_records(folder, described.name, arms, [*names, *([check.name] if check else [])])
    for name, condition in described.conditions.items():
        for arm in condition.planned or ():
            require_known(file, f"conditions.{name}.planned", arm, arms)
    return Results(
        name=described.name,
        primary=primary,
        arms=arms,
        overrides={name: arm.overrides for name, arm in described.arms.items()},
        conditions=tuple(names),
        planned={name: _planned(described.conditions[name].planned, arms, name, records) for name in names},
        schedule_check=check,
        class_shares=read_checked(dict[str, dict[str, Number]], folder / "classes.json"),
        records=records,
    )


def _ordered_arms(file: Path, arms: Mapping[str, Arm]) -> dict[str, str | None]:
    """``{arm: its control}``, an arm after its control."""
    ordered: dict[str, str | None] = {}
    for name in arms:
        path: list[str] = []
        each: str | None = name
        while each is not None and each not in ordered:
            require_known(file, f"arms.{path[-1] if path else name}.control", each, arms)
            if each in path:
                raise ConfigError(
                    f"{file}: arms are {[*path, each]}; expected controls that lead to a baseline, not in a "
                    "circle"
                )
            path.append(each)
            each = arms[each].control
        ordered.update({arm: arms[arm].control for arm in reversed(path)})
    return ordered


def _planned(
    planned: Mapping[str, tuple[int, ...] | None] | None,
    arms: Mapping[str, Any],
    name: str,
    records: Mapping[tuple[str, str, int], Record],
) -> dict[str, tuple[int, ...]]:
    """Who is run in a condition, and with which seeds."""
    there: dict[str, set[int]] = {}
    for where, arm, seed in records:
        if where == name:
            there.setdefault(arm, set()).add(seed)
    if planned is None:
        every = tuple(sorted(set().union(*there.values())))
        return {arm: every for arm in arms if arm in there}
    # Existing runs are planned as far as they are there.
    return {
        arm: tuple(sorted(there.get(arm, ()) if seeds is None else seeds)) for arm, seeds in planned.items()
    }


def read_records(
    folder: Path, experiment: str, arms: Mapping[str, str | None], conditions: list[str]
) -> dict[tuple[str, str, int], Record]:
    """Reads all records of a folder, ``<condition>/<arm>/seed<k>.json``.

    Args:
        folder: the folder.
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
        _require_fit(file, record, experiment, arms, conditions)
        records[record.condition, record.arm, record.seed] = record
    places = {name: i for i, name in enumerate(arms)}
    ordered = sorted(records, key=lambda key: (conditions.index(key[0]), places[key[1]], key[2]))
    return {key: records[key] for key in ordered}


def _require_fit(
    file: Path, record: Record, experiment: str, arms: Mapping[str, str | None], conditions: list[str]
) -> None:
    def error(key: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{file}: {key} is {value!r}; expected {expected}")

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
    if file.relative_to(file.parents[2]).as_posix() != name:
        raise ConfigError(f"{file}: it says that it is {name}: name it so")
    if record.control != arms[record.arm]:
        raise error("control", record.control, f"{arms[record.arm]!r}, as in experiment.json")
