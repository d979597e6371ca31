"""Numbers of an experiment by seed, and their pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regseg_d2.apps.experiment.records import Record
from regseg_d2.apps.experiment.report_input import Results
from regseg_d2.apps.experiment.statistics import Comparison, compare_family
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean

METRIC = "metric"
MEASURE = "measure"
IOU = "IoU"
TAIL = "tail"

# Measures of which less is better.
LOWER_IS_BETTER = ("calibration_error", "intra_class_distance", "intra_inter_ratio")


@dataclass(frozen=True, order=True)
class Quantity:
    """One number of a run.

    Attributes:
        dataset: what it was measured on.
        kind: where it stands in the record: METRIC, MEASURE, IOU (of a class) or TAIL (mean IoU of the rare
            third of the classes).
        name: of the metric, measure or class.
    """

    dataset: str
    kind: str
    name: str

    @property
    def lower_is_better(self) -> bool:
        """Whether an arm gains where the number falls."""
        return self.kind != IOU and self.name in LOWER_IS_BETTER


@dataclass(frozen=True)
class Pairs:
    """An arm and its control, seed by seed.

    Attributes:
        seeds: seeds that both have.
        arm_values: the arm's number at each of them.
        control_values: the control's.
        unpaired: ``{arm or control: its seeds that the other lacks}``; empty if there are none.
    """

    arm: str
    control: str
    seeds: tuple[int, ...]
    arm_values: tuple[float, ...]
    control_values: tuple[float, ...]
    unpaired: Mapping[str, tuple[int, ...]]

    @property
    def differences(self) -> tuple[float, ...]:
        """Arm minus control at each seed."""
        return tuple(a - c for a, c in zip(self.arm_values, self.control_values, strict=True))


class Scores:
    """Looks numbers up."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._classes = {
            dataset: {name for run in results.records.values() for name in run.iou.get(dataset, {})}
            for dataset in results.datasets()
        }
        self._shares = {dataset: self._find_shares(dataset) for dataset in self._classes}
        self._tails = {dataset: _rare_third(shares) for dataset, shares in self._shares.items()}

    def values(self, condition: str, arm: str, quantity: Quantity) -> dict[int, float]:
        """A number of an arm by seed; seeds for which it is not defined are left out."""
        found = {seed: self.value(run, quantity) for seed, run in self.results.runs(condition, arm).items()}
        return {seed: value for seed, value in sorted(found.items()) if value is not None}

    def value(self, run: Record, quantity: Quantity) -> float | None:
        """A number of a run, None if it is not there or not defined."""
        if quantity.kind == TAIL:
            iou = run.iou.get(quantity.dataset, {})
            rare = [iou[name] for name in self.tail(quantity.dataset) if iou.get(name) is not None]
            return float(np.mean(rare)) if rare else None
        groups = {METRIC: run.metrics, MEASURE: run.measures, IOU: run.iou}
        return groups[quantity.kind].get(quantity.dataset, {}).get(quantity.name)

    def pairs(self, condition: str, arm: str, quantity: Quantity) -> Pairs:
        """An arm's number beside its control's."""
        control = self.results.arms[arm]
        if control is None:
            raise ValueError(f"{arm} has no control")
        ours, theirs = self.values(condition, arm, quantity), self.values(condition, control, quantity)
        both = sorted(ours.keys() & theirs.keys())
        alone = {
            arm: tuple(sorted(ours.keys() - theirs.keys())),
            control: tuple(sorted(theirs.keys() - ours.keys())),
        }
        return Pairs(
            arm=arm,
            control=control,
            seeds=tuple(both),
            arm_values=tuple(ours[seed] for seed in both),
            control_values=tuple(theirs[seed] for seed in both),
            unpaired={name: seeds for name, seeds in alone.items() if seeds},
        )

    def compare(self, condition: str, quantity: Quantity) -> dict[str, tuple[Pairs, Comparison]]:
        """Compares all methods of a condition with their controls: one family."""
        pairs = {arm: self.pairs(condition, arm, quantity) for arm in self.results.methods_of(condition)}
        comparisons = compare_family(
            [each.differences for each in pairs.values()], lower_is_better=quantity.lower_is_better
        )
        return {arm: (each, c) for (arm, each), c in zip(pairs.items(), comparisons, strict=True)}

    def primary(self) -> Quantity:
        """The number that verdicts are about.

        Raises:
            ConfigError: no run of the primary condition has it.
        """
        primary = self.results.primary
        known = self.quantities(primary.dataset, METRIC) + self.quantities(primary.dataset, MEASURE)
        for quantity in known:
            if quantity.name == primary.metric:
                return quantity
        if self.results.records:
            names = [each.name for each in known]
            hint = did_you_mean(primary.metric, names) if names else ""
            raise ConfigError(
                f"primary of experiment '{self.results.name}': no record has {primary.metric!r} on "
                f"{primary.dataset!r}{hint}; data sets are {self.results.datasets()}, metrics there {names}. "
                "Correct the experiment's file"
            )
        return Quantity(primary.dataset, METRIC, primary.metric)

    def quantities(self, dataset: str, kind: str) -> list[Quantity]:
        """All metrics or measures that some run has on a data set, the primary one first."""
        runs = self.results.records.values()
        groups = [(run.metrics if kind == METRIC else run.measures).get(dataset, {}) for run in runs]
        names = sorted({name for group in groups for name in group})
        names.sort(key=lambda name: (name != self.results.primary.metric, not name.startswith("mIoU")))
        return [Quantity(dataset, kind, name) for name in names]

    def classes(self, dataset: str) -> list[str]:
        """Classes of a data set, frequent ones first; by name where their frequency is not known."""
        shares = self.shares(dataset)
        return sorted(self._classes.get(dataset, ()), key=lambda name: (-shares.get(name, 0.0), name))

    def shares(self, dataset: str) -> dict[str, float]:
        """Share of the training pixels of each class of a data set; empty if it is not known.

        A test set has the shares of the training sets that name all of its classes, each of them counted the
        same.
        """
        return self._shares.get(dataset, {})

    def tail(self, dataset: str) -> list[str]:
        """The third of the classes (rounded up) with the least training pixels, among those with any."""
        return self._tails.get(dataset, [])

    def _find_shares(self, dataset: str) -> dict[str, float]:
        known, names = self.results.class_shares, self._classes[dataset]
        fitting = [known[dataset]] if dataset in known else [s for s in known.values() if names <= s.keys()]
        if not names or not fitting:
            return {}
        return {name: float(np.mean([share.get(name, 0.0) for share in fitting])) for name in sorted(names)}


def _rare_third(shares: Mapping[str, float]) -> list[str]:
    present = sorted((share, name) for name, share in shares.items() if share > 0)
    return [name for _, name in present[: math.ceil(len(present) / 3)]]


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where they are not defined."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
