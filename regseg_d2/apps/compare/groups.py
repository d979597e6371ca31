"""Compares training runs, and says when a difference is no evidence of a gain.

Runs that differ in their seed alone are one group: mean and sample standard deviation over seeds. A
group is compared with a baseline, a group without regularizers that was trained on the *same
schedule*: the same config but for the regularizers and the stages of the head that one may ask for (CAR's
linear convolution, MDRL's memory). Without one, no difference is called a gain.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from regseg_d2.apps.compare.runs import CompareError, Run

MIN_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """Mean of a number over seeds.

    Attributes:
        std: sample standard deviation, NaN with one seed.
    """

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Returns the estimate of some values, at least one."""
        mean = statistics.fmean(values)
        defined = len(values) > 1 and math.isfinite(mean)
        return cls(mean, statistics.stdev(values) if defined else math.nan, len(values))


@dataclass
class Group:
    """Runs that differ in their seed alone, sorted by it."""

    name: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run with the smallest seed."""
        return self.runs[0]

    @property
    def datasets(self) -> list[str]:
        """Data sets that all runs were evaluated on, in the order of DATASETS.TEST."""
        return [name for name in self.first.evaluations if all(name in run.evaluations for run in self.runs)]

    def miou(self, dataset: str) -> Estimate:
        """Returns the mIoU on a data set over seeds."""
        return Estimate.of([run.miou(dataset) for run in self.runs])

    def drop(self, dataset: str) -> Estimate:
        """Returns the mIoU on the first data set less that on another one, over seeds."""
        return Estimate.of([run.miou(self.datasets[0]) - run.miou(dataset) for run in self.runs])

    def class_iou(self, dataset: str, index: int) -> Estimate:
        """Returns one class's IoU on a data set over seeds."""
        return Estimate.of([run.class_ious(dataset)[index] for run in self.runs])

    def class_names(self, dataset: str) -> list[str]:
        """Returns the names of a data set's classes."""
        return [item["name"] for item in self.first.evaluations[dataset]["classes"]]

    def has_classes_of(self, other: Group, dataset: str) -> bool:
        """Whether another group was evaluated on a data set with the same classes."""
        return dataset in other.datasets and self.class_names(dataset) == other.class_names(dataset)


@dataclass(frozen=True)
class Difference:
    """A group's number less its baseline's.

    Attributes:
        what: the data set, or "drop to" it.
        delta: difference of the means.
        noise: pooled standard deviation over seeds, NaN where all have one seed.
        verdict: what may be said about it.
    """

    what: str
    delta: float
    noise: float
    verdict: str


@dataclass
class Comparison:
    """A group and the baseline that it is measured against.

    Attributes:
        group: the group.
        baseline: its baseline, or None.
        objections: why no gain is claimed; empty where the two can be compared.
        differences: of mIoU on each data set and of the drops between them.
    """

    group: Group
    baseline: Group | None
    objections: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Puts runs that differ in their seed alone into one group.

    Returns:
        The groups, those without regularizers first, and notes on runs that were left out.

    Raises:
        CompareError: there is no run.
    """
    if not runs:
        raise CompareError("There is no run to compare: give the OUTPUT_DIR of at least one.")
    by_settings: dict[str, list[Run]] = {}
    notes = []
    for run in runs:
        members = by_settings.setdefault(json.dumps(run.settings(), sort_keys=True, default=str), [])
        same_seed = next((member for member in members if member.seed == run.seed), None)
        if same_seed is None:
            members.append(run)
        elif same_seed.path.resolve() != run.path.resolve():
            notes.append(
                f"'{run.path}' is left out: '{same_seed.path}' has the same settings and SEED {run.seed}, "
                "and counting both would make the spread too small."
            )
    groups = [Group("", sorted(members, key=lambda run: run.seed)) for members in by_settings.values()]
    groups.sort(key=lambda group: (bool(group.first.regularizers), group.first.regularizers))
    _name_groups(groups)
    return groups, notes


def _name_groups(groups: list[Group]) -> None:
    for group in groups:
        group.name = "+".join(group.first.regularizers) or "baseline"
    names = [group.name for group in groups]
    for name in set(names):
        same = [group for group in groups if group.name == name]
        if len(same) > 1:
            for number, group in enumerate(same, start=1):
                group.name = f"{name} ({number})"


def config_differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Returns the keys in which groups differ, with one value a group (None: it has no such key)."""
    settings = [group.first.settings() for group in groups]
    keys = sorted(set().union(*settings))
    values = {key: [setting.get(key) for setting in settings] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def compare_groups(groups: Sequence[Group], baselines: Sequence[Group] | None = None) -> list[Comparison]:
    """Compares every other group with a baseline.

    Args:
        groups: all groups.
        baselines: groups to measure against; None takes those without regularizers.

    Returns:
        One comparison for each group that is no baseline. Of several baselines on the same schedule,
        the one with the fewest other settings is taken.
    """
    if baselines is None:
        baselines = [group for group in groups if not group.first.regularizers]
    others = [group for group in groups if not any(group is baseline for baseline in baselines)]
    return [_compare(group, baselines) for group in others]


def _compare(group: Group, baselines: Sequence[Group]) -> Comparison:
    if not baselines:
        return Comparison(group, None, ["there is no baseline (MODEL.REGULARIZERS.NAMES []) among the runs"])
    nearest = min(
        baselines,
        key=lambda b: (
            len(_schedule_differences(group, b)),
            len(config_differences([group, b])),
            -len(b.runs),
        ),
    )
    comparison = Comparison(group, nearest, _objections(group, nearest))
    for dataset in group.datasets:
        if dataset not in nearest.datasets:
            comparison.objections.append(f"the baseline was not evaluated on {dataset}")
            continue
        new, old = group.miou(dataset), nearest.miou(dataset)
        comparison.differences.append(
            _difference(dataset, new, old, comparison.objections, words=("gain", "loss"))
        )
    shared = [name for name in group.datasets if name in nearest.datasets]
    if shared and shared[0] == group.datasets[0] == nearest.datasets[0]:
        for dataset in shared[1:]:
            new, old = group.drop(dataset), nearest.drop(dataset)
            what = f"drop to {dataset}"
            comparison.differences.append(
                _difference(what, new, old, comparison.objections, words=("larger drop", "smaller drop"))
            )
    return comparison


def _schedule_differences(group: Group, baseline: Group) -> list[str]:
    new, old = group.first.schedule(), baseline.first.schedule()
    return [key for key in sorted({*new, *old}) if new.get(key) != old.get(key)]


def _objections(group: Group, baseline: Group) -> list[str]:
    found = []
    keys = _schedule_differences(group, baseline)
    if keys:
        shown = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        found.append(f"the nearest baseline has another schedule: {shown}")
    for run in (*group.runs, *baseline.runs):
        found.extend(_unfinished(run))
    for dataset in group.datasets:
        if (
            dataset in baseline.datasets
            and len({_what_was_measured(run, dataset) for run in (*group.runs, *baseline.runs)}) > 1
        ):
            found.append(f"the runs were evaluated on different images or labels of {dataset}")
    return found


def _unfinished(run: Run) -> list[str]:
    if run.config.get("TEST.PATIENCE"):
        return []  # early stopping ends a run before MAX_ITER
    steps = {evaluation.get("model", {}).get("completed_steps") for evaluation in run.evaluations.values()}
    wanted = run.config.get("SOLVER.MAX_ITER")
    short = sorted(step for step in steps if step is not None and step != wanted)
    return [f"'{run.path}' was evaluated after {short[0]} of {wanted} steps"] if short else []


def _what_was_measured(run: Run, dataset: str) -> str:
    evaluation = run.evaluations[dataset]
    classes = [(item["name"], item["pixels"]) for item in evaluation["classes"]]
    return json.dumps([evaluation["num_images"], evaluation.get("protocol"), classes])


def _difference(
    what: str, new: Estimate, old: Estimate, objections: Sequence[str], words: tuple[str, str]
) -> Difference:
    delta = new.mean - old.mean
    noise = pooled_std(new, old)
    verdict = "no gain is claimed" if objections else judge(delta, noise, min(new.count, old.count), words)
    return Difference(what, delta, noise, verdict)


def pooled_std(a: Estimate, b: Estimate) -> float:
    """Returns the pooled standard deviation of two estimates, NaN where both have one seed."""
    freedom = a.count + b.count - 2
    if freedom == 0:
        return math.nan
    squares = sum((e.count - 1) * e.std**2 for e in (a, b) if e.count > 1)
    return math.sqrt(squares / freedom)


def judge(delta: float, noise: float, seeds: int, words: tuple[str, str] = ("gain", "loss")) -> str:
    """Returns what may be said of a difference."""
    if math.isnan(delta):
        return "not defined"
    if seeds == 1:
        return "one seed: not evidence of a gain"
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds: not evidence of a gain (that takes {MIN_SEEDS})"
    if delta == 0 or abs(delta) < noise:
        return "within noise"
    return words[0] if delta > 0 else words[1]
