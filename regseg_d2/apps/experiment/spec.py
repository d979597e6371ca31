"""The file of an experiment: what is compared, on what, how often, and by which number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import read_yaml, shown
from regseg_d2.config.files import flatten_config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SEEDS = re.compile(r"(\d+)-(\d+)")
#: The condition of an experiment that names none.
ONLY_CONDITION = "all"


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        name: shown in tables; also the name of a folder.
        control: the arm that it is compared with, or None for the baseline itself.
        overrides: config values by dotted key.
        seeds: seeds that it is run with, of those of the condition; None takes all.
        runs: existing run folders that are taken as they are, instead of training.
    """

    name: str
    control: str | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    runs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Condition:
    """A setting in which arms are compared, such as a share of the labels.

    Attributes:
        name: shown in tables; also the name of a folder.
        arms: the arms that are run in it.
        seeds: the seeds.
        overrides: config values by dotted key.
    """

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleCheck:
    """Runs of one arm with a longer schedule: what it gains says whether the schedule was long enough."""

    arm: str
    condition: str
    factor: int
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The condition that its runs are recorded under."""
        return f"{self.condition}@x{self.factor}"


@dataclass(frozen=True)
class Experiment:
    """All of an experiment's file.

    Attributes:
        name: of the experiment.
        file: where it was read from.
        base: config file of all runs.
        common: config values of all runs, by dotted key.
        arms: by name, in the order of the file.
        conditions: by name, in the order of the file.
        primary: ``{"condition", "dataset", "metric"}``, chosen before the runs.
        schedule_check: or None.
        measures: arguments of ``tools/measure.py`` for every run: ``{"datasets": [...], "corruptions":
            [...]}``; None measures nothing.
    """

    name: str
    file: Path
    base: Path
    common: Mapping[str, Any]
    arms: Mapping[str, Arm]
    conditions: Mapping[str, Condition]
    primary: Mapping[str, str]
    schedule_check: ScheduleCheck | None
    measures: Mapping[str, Any] | None

    @property
    def results(self) -> Path:
        """Folder of the records: beside the file, with its name."""
        return self.file.with_suffix("")

    def planned_seeds(self, condition: Condition, arm: str) -> list[int] | None:
        """Seeds that an arm is run with in a condition; None for an arm of runs that exist."""
        chosen = self.arms[arm]
        if chosen.runs:
            return None
        return [seed for seed in condition.seeds if chosen.seeds is None or seed in chosen.seeds]

    def overrides(self, condition: str, arm: str) -> dict[str, Any]:
        """Config values of an arm in a condition, by dotted key."""
        return {**self.common, **self.conditions[condition].overrides, **self.arms[arm].overrides}

    def as_data(self) -> dict[str, Any]:
        """What the report needs to know, as plain data."""
        return {
            "name": self.name,
            "primary": dict(self.primary),
            "arms": {
                arm.name: {"control": arm.control, "overrides": dict(arm.overrides)}
                for arm in self.arms.values()
            },
            "conditions": {
                condition.name: {
                    "overrides": dict(condition.overrides),
                    "planned": {name: self.planned_seeds(condition, name) for name in condition.arms},
                }
                for condition in self.conditions.values()
            },
            "schedule_check": self.schedule_check and asdict(self.schedule_check),
        }


class _Reader:
    """Reads parts of the file; every error names it and the key."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def error(self, key: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{self.file}: {key} is {shown(value)}; expected {expected}")

    def mapping(self, value: Any, key: str, allowed: Sequence[str] | None = None) -> dict[str, Any]:
        value = {} if value is None else value
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.error(key, value, "a mapping")
        for name in value:
            if allowed is not None and name not in allowed:
                raise ConfigError(
                    f"{self.file}: {key} has an unknown key {name!r}{did_you_mean(name, allowed)}; "
                    f"known are {sorted(allowed)}"
                )
        return dict(value)

    def name(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.error(key, value, "a name of letters, digits, '_', '-' and '.'")
        return value

    def overrides(self, value: Any, key: str) -> dict[str, Any]:
        flat = flatten_config(self.mapping(value, key))
        for name in ("SEED", "OUTPUT_DIR"):
            if name in flat:
                raise ConfigError(
                    f"{self.file}: {key} sets {name}, which the experiment chooses for each run"
                )
        return flat

    def seeds(self, value: Any, key: str) -> tuple[int, ...]:
        if isinstance(value, str) and (match := _SEEDS.fullmatch(value)):
            first, last = int(match[1]), int(match[2])
            if first <= last < first + 10_000:
                return tuple(range(first, last + 1))
        values = value if isinstance(value, list) else [value]
        good = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in values)
        if not good or not values or len(set(values)) != len(values):
            raise self.error(key, value, "seeds: a list such as [0, 1, 2], or a range such as 0-9")
        return tuple(values)

    def one_of(self, value: Any, key: str, known: Sequence[str]) -> str:
        if value not in known:
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            raise ConfigError(f"{self.file}: {key} is {shown(value)}{hint}; expected one of {sorted(known)}")
        return value


_KEYS = (
    "name",
    "base",
    "common",
    "arms",
    "control",
    "conditions",
    "seeds",
    "primary",
    "schedule_check",
    "measures",
)


def read_experiment(path: str | Path) -> Experiment:
    """Reads and checks the file of an experiment; ``docs/experiments.md`` says what is in it.

    Args:
        path: the file.

    Raises:
        ConfigError: the file is not there, no YAML, or a key has a value that cannot be used.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no file '{file}'; expected the YAML file of an experiment.")
    reader = _Reader(file)
    content = reader.mapping(read_yaml(file), "the file", _KEYS)
    for key in ("base", "arms", "seeds", "primary"):
        if key not in content:
            raise ConfigError(f"{file}: {key} is missing")
    if not isinstance(content["base"], str):
        raise reader.error("base", content["base"], "the path of a config, relative to this file")
    base = file.parent / content["base"]
    if not base.is_file():
        raise reader.error("base", content["base"], f"the path of a config, and there is no '{base}'")
    arms = _read_arms(reader, content)
    seeds = reader.seeds(content["seeds"], "seeds")
    conditions = _read_conditions(reader, content, arms, seeds)
    return Experiment(
        name=reader.name(content.get("name", file.stem), "name"),
        file=file,
        base=base,
        common=reader.overrides(content.get("common"), "common"),
        arms=arms,
        conditions=conditions,
        primary=_read_primary(reader, content["primary"], conditions),
        schedule_check=_read_check(reader, content.get("schedule_check"), arms, conditions),
        measures=_read_measures(reader, content.get("measures")),
    )


def _read_arms(reader: _Reader, content: Mapping[str, Any]) -> dict[str, Arm]:
    written = reader.mapping(content["arms"], "arms")
    if len(written) < 1:
        raise reader.error("arms", content["arms"], "at least one arm")
    default = content.get("control", next(iter(written)))
    reader.one_of(default, "control", list(written))
    arms = {}
    for name, value in written.items():
        key = f"arms.{reader.name(name, 'arms')}"
        entry = reader.mapping(value, key, ("overrides", "control", "seeds", "runs"))
        control = entry.get("control", default)
        reader.one_of(control, f"{key}.control", list(written))
        runs = entry.get("runs", [])
        if not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
            raise reader.error(f"{key}.runs", runs, "a list of run folders")
        if runs and ("overrides" in entry or "seeds" in entry):
            raise ConfigError(
                f"{reader.file}: {key} has runs that exist, and overrides or seeds for new ones"
            )
        arms[name] = Arm(
            name=name,
            control=None if control == name else control,
            overrides=reader.overrides(entry.get("overrides"), f"{key}.overrides"),
            seeds=reader.seeds(entry["seeds"], f"{key}.seeds") if "seeds" in entry else None,
            runs=tuple(reader.file.parent / run for run in runs),
        )
    return arms


def _read_conditions(
    reader: _Reader, content: Mapping[str, Any], arms: Mapping[str, Arm], seeds: tuple[int, ...]
) -> dict[str, Condition]:
    written = reader.mapping(content.get("conditions"), "conditions") or {ONLY_CONDITION: {}}
    conditions = {}
    for name, value in written.items():
        key = f"conditions.{reader.name(name, 'conditions')}"
        entry = reader.mapping(value, key, ("overrides", "arms", "seeds"))
        chosen = entry.get("arms", list(arms))
        if not isinstance(chosen, list) or not chosen:
            raise reader.error(f"{key}.arms", chosen, "a list of arms")
        for arm in chosen:
            reader.one_of(arm, f"{key}.arms", list(arms))
            control = arms[arm].control
            if control is not None and control not in chosen:
                raise ConfigError(f"{reader.file}: {key}.arms has {arm!r} without its control {control!r}")
        conditions[name] = Condition(
            name=name,
            arms=tuple(chosen),
            seeds=reader.seeds(entry["seeds"], f"{key}.seeds") if "seeds" in entry else seeds,
            overrides=reader.overrides(entry.get("overrides"), f"{key}.overrides"),
        )
    return conditions


def _read_primary(reader: _Reader, value: Any, conditions: Mapping[str, Condition]) -> dict[str, str]:
    entry = reader.mapping(value, "primary", ("condition", "dataset", "metric"))
    entry.setdefault("condition", next(iter(conditions)))
    entry.setdefault("metric", "mIoU")
    reader.one_of(entry["condition"], "primary.condition", list(conditions))
    for key in ("dataset", "metric"):
        if not isinstance(entry.get(key), str):
            raise reader.error(f"primary.{key}", entry.get(key), "a name")
    return entry


def _read_check(
    reader: _Reader, value: Any, arms: Mapping[str, Arm], conditions: Mapping[str, Condition]
) -> ScheduleCheck | None:
    if value is None:
        return None
    entry = reader.mapping(value, "schedule_check", ("arm", "condition", "factor", "seeds"))
    factor = entry.get("factor", 2)
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
        raise reader.error("schedule_check.factor", factor, "a whole number from 2 on")
    return ScheduleCheck(
        arm=reader.one_of(entry.get("arm", next(iter(arms))), "schedule_check.arm", list(arms)),
        condition=reader.one_of(
            entry.get("condition", next(iter(conditions))), "schedule_check.condition", list(conditions)
        ),
        factor=factor,
        seeds=reader.seeds(entry.get("seeds", [0]), "schedule_check.seeds"),
    )


def _read_measures(reader: _Reader, value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    entry = reader.mapping(value, "measures", ("datasets", "corruptions", "train_images"))
    for key in ("datasets", "corruptions"):
        names = entry.setdefault(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise reader.error(f"measures.{key}", names, "a list of names")
    return entry
