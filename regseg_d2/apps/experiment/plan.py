"""The runs of an experiment."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regseg_d2.apps.experiment.spec import Experiment
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config


@dataclass(frozen=True)
class Run:
    """One training.

    ``existing`` is a run folder that is there already and only recorded.
    """

    experiment: Experiment
    condition: str
    arm: str
    seed: int
    overrides: dict[str, Any]
    existing: Path | None = None

    @property
    def name(self) -> str:
        """``condition/arm/seed``: how it is named on the command line and in the log."""
        return f"{self.condition}/{self.arm}/seed{self.seed}"

    @property
    def record(self) -> Path:
        """The file that says that it is done, and what came out."""
        return self.experiment.results / f"{self.name}.json"

    def folder(self, output: Path) -> Path:
        """Its OUTPUT_DIR below the folder of all runs."""
        return output / self.experiment.name / self.name

    def options(self, output: Path) -> list[str]:
        """``KEY VALUE`` pairs of the command line that trains it."""
        values = {**self.overrides, "SEED": self.seed, "OUTPUT_DIR": str(self.folder(output))}
        return as_words(values)


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Writes config values as the ``KEY VALUE`` pairs of a command line."""
    return [
        word
        for key, value in values.items()
        for word in (key, value if isinstance(value, str) else repr(value))
    ]


def plan_runs(experiment: Experiment) -> list[Run]:
    """Lists all runs: seed by seed, so that what is done at any time is paired; longer schedules last.

    Raises:
        ConfigError: an existing run is not one, or two have the same seed.
    """
    runs = [
        run
        for name, condition in experiment.conditions.items()
        for arm in condition.arms
        for run in _runs_of(experiment, name, arm)
    ]
    order = {seed: i for i, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
    runs.sort(key=lambda run: order[run.seed])
    return runs + _longer_runs(experiment)


def _runs_of(experiment: Experiment, condition: str, arm: str) -> list[Run]:
    seeds = experiment.planned_seeds(condition, arm)
    if seeds is not None:
        overrides = experiment.overrides(condition, arm)
        return [Run(experiment, condition, arm, seed, overrides) for seed in seeds]
    folders = experiment.arms[arm].runs
    seeds = [_seed_of(folder) for folder in folders]
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"{experiment.file}: arms.{arm}.runs have the seeds {seeds}: one is there twice")
    return [
        Run(experiment, condition, arm, seed, {}, folder) for seed, folder in zip(seeds, folders, strict=True)
    ]


def _seed_of(folder: Path) -> int:
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"'{folder}' is no folder of a run: it has no config.yaml.")
    return load_config(str(config)).SEED


def _longer_runs(experiment: Experiment) -> list[Run]:
    check = experiment.schedule_check
    if check is None:
        return []
    overrides = experiment.overrides(check.condition, check.arm)
    solver = load_config(str(experiment.base), as_words(overrides)).SOLVER
    overrides["SOLVER.MAX_ITER"] = solver.MAX_ITER * check.factor
    overrides["SOLVER.STEPS"] = [step * check.factor for step in solver.STEPS]
    return [Run(experiment, check.name, check.arm, seed, overrides) for seed in check.seeds]


def choose_runs(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Keeps the runs whose name matches one of the patterns (``*`` for anything); all without patterns.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    patterns, names = patterns or ["*"], [run.name for run in runs]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"No run is named {pattern!r}; names are like {names[0]!r}, and '*' stands for anything."
            )
    return [run for run in runs if any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)]
