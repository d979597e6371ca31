"""The file of an experiment: what is compared, on what, how often, and by which number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, PrivateAttr

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.schema import OrEmpty, Section, Whole, checked, require_known
from regseg_d2.common.yaml_files import read_yaml
from regseg_d2.config.keys import flatten_config
from regseg_d2.config.shipped import config_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SEEDS = re.compile(r"(\d+)-(\d+)")
#: The condition of an experiment that names none.
ONLY_CONDITION = "all"


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name of letters, digits, '_', '-' and '.'")
    return value


def _overrides(value: dict[str, Any]) -> dict[str, Any]:
    flat = flatten_config(value)
    if "SEED" in flat or "OUTPUT_DIR" in flat:
        raise ValueError("other keys than SEED and OUTPUT_DIR, which the experiment chooses for each run")
    return flat


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) and (match := _SEEDS.fullmatch(value)):
        first, last = int(match[1]), int(match[2])
        if first <= last < first + 10_000:
            return tuple(range(first, last + 1))
    values = value if isinstance(value, (list, tuple)) else [value]
    good = all(type(seed) is int and seed >= 0 for seed in values)
    if not good or not values or len(set(values)) != len(values):
        raise ValueError("seeds: a list such as [0, 1, 2], or a range such as 0-9")
    return tuple(values)


Name = Annotated[str, AfterValidator(_name)]
Seeds = Annotated[tuple[int, ...], PlainValidator(_seeds)]
#: Config values by dotted key; written nested or dotted.
Overrides = Annotated[dict[str, Any], OrEmpty, AfterValidator(_overrides)]


class Arm(Section):
    """One of the things that are compared.

    Attributes:
        control: the arm that it is compared with, or None for the baseline itself.
        overrides: config values by dotted key.
        seeds: seeds that it is run with, of those of the condition; None takes all.
        runs: existing run folders that are taken as they are, instead of training.
    """

    control: str | None = None
    overrides: Overrides = {}
    seeds: Seeds | None = None
    runs: tuple[Path, ...] = ()


class Condition(Section):
    """A setting in which arms are compared, such as a share of the labels."""

    arms: Annotated[tuple[str, ...], Field(min_length=1)] = ()
    seeds: Seeds = ()
    overrides: Overrides = {}


class Primary(Section):
    """The one number that verdicts are about, chosen before the runs."""

    condition: str = ""
    dataset: str
    metric: str = "mIoU"


class ScheduleCheck(Section):
    """Runs of one arm with a longer schedule: what it gains says whether the schedule was long enough."""

    arm: str = ""
    condition: str = ""
    factor: Annotated[Whole, Field(ge=2)] = 2
    seeds: Seeds = (0,)

    @property
    def name(self) -> str:
        """The condition that its runs are recorded under."""
        return f"{self.condition}@x{self.factor}"


class Measures(Section):
    """Arguments of ``tools/measure.py`` for every run."""

    datasets: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    train_images: Whole | None = None


class Experiment(Section):
    """All of an experiment's file; ``docs/experiments.md`` says what is in it.

    Attributes:
        base: config file of all runs; relative to this one, or ``regseg:NAME`` of the package's.
        common: config values of all runs, by dotted key.
        arms: by name, in the order of the file.
        control: the control of arms that name none.
        conditions: by name, in the order of the file.
        seeds: of conditions that name none.
    """

    base: Path
    arms: Annotated[dict[Name, Arm], OrEmpty, Field(min_length=1)]
    seeds: Seeds
    primary: Primary
    name: Name = ""
    common: Overrides = {}
    control: str | None = None
    conditions: Annotated[dict[Name, Condition], OrEmpty] = {}
    schedule_check: ScheduleCheck | None = None
    measures: Measures | None = None
    _file: Path = PrivateAttr()

    @property
    def file(self) -> Path:
        """Where it was read from."""
        return self._file

    @property
    def results(self) -> Path:
        """Folder of the records: beside the file, with its name."""
        return self.file.with_suffix("")

    def planned_seeds(self, condition: str, arm: str) -> list[int] | None:
        """Seeds that an arm is run with in a condition; None for an arm of runs that exist."""
        chosen = self.arms[arm]
        if chosen.runs:
            return None
        return [
            seed for seed in self.conditions[condition].seeds if chosen.seeds is None or seed in chosen.seeds
        ]

    def overrides(self, condition: str, arm: str) -> dict[str, Any]:
        """Config values of an arm in a condition, by dotted key."""
        return {**self.common, **self.conditions[condition].overrides, **self.arms[arm].overrides}

    def as_data(self) -> dict[str, Any]:
        """What the report needs to know, as plain data."""
        return {
            "name": self.name,
            "primary": self.primary.model_dump(),
            "arms": {
                name: arm.model_dump(include={"control", "overrides"}) for name, arm in self.arms.items()
            },
            "conditions": {
                name: {
                    "overrides": condition.overrides,
                    "planned": {arm: self.planned_seeds(name, arm) for arm in condition.arms},
                }
                for name, condition in self.conditions.items()
            },
            "schedule_check": self.schedule_check and self.schedule_check.model_dump(),
        }


def read_experiment(path: str | Path) -> Experiment:
    """Reads and checks the file of an experiment, and puts what it leaves out in.

    Raises:
        ConfigError: the file is not there, no YAML, or a key has a value that cannot be used.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no file '{file}'; expected the YAML file of an experiment.")
    read: Experiment = checked(Experiment, read_yaml(file), file)
    base = config_path(read.base, file.parent)
    if not base.is_file():
        raise ConfigError(
            f"{file}: base is '{read.base}'; expected the path of a config, and there is no '{base}'"
        )
    arms = _complete_arms(file, read)
    conditions = _complete_conditions(file, read, arms)
    first = {"condition": next(iter(conditions)), "arm": next(iter(arms))}
    primary, check = read.primary, read.schedule_check
    if not primary.condition:
        primary = primary.model_copy(update={"condition": first["condition"]})
    require_known(file, "primary.condition", primary.condition, conditions)
    if check is not None:
        check = check.model_copy(update={key: getattr(check, key) or value for key, value in first.items()})
        require_known(file, "schedule_check.arm", check.arm, arms)
        require_known(file, "schedule_check.condition", check.condition, conditions)
    experiment = read.model_copy(
        update={
            "name": read.name or file.stem,
            "base": base,
            "arms": arms,
            "conditions": conditions,
            "primary": primary,
            "schedule_check": check,
        }
    )
    experiment._file = file
    return experiment


def _complete_arms(file: Path, read: Experiment) -> dict[str, Arm]:
    default = read.control or next(iter(read.arms))
    require_known(file, "control", default, read.arms)
    arms = {}
    for name, arm in read.arms.items():
        control = arm.control or default
        require_known(file, f"arms.{name}.control", control, read.arms)
        if arm.runs and (arm.overrides or arm.seeds):
            raise ConfigError(f"{file}: arms.{name} has runs that exist, and overrides or seeds for new ones")
        runs = tuple(file.parent / run for run in arm.runs)
        arms[name] = arm.model_copy(update={"control": None if control == name else control, "runs": runs})
    return arms


def _complete_conditions(file: Path, read: Experiment, arms: dict[str, Arm]) -> dict[str, Condition]:
    conditions = {}
    for name, condition in (read.conditions or {ONLY_CONDITION: Condition()}).items():
        chosen = condition.arms or tuple(arms)
        for arm in chosen:
            require_known(file, f"conditions.{name}.arms", arm, arms)
            control = arms[arm].control
            if control is not None and control not in chosen:
                raise ConfigError(
                    f"{file}: conditions.{name}.arms has {arm!r} without its control {control!r}"
                )
        conditions[name] = condition.model_copy(
            update={"arms": chosen, "seeds": condition.seeds or read.seeds}
        )
    return conditions
