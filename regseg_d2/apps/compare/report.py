"""The report of a comparison: tables, what is missing for one, and all of it as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from regseg_d2.apps.compare.formats import TABLE_FORMATS, Table
from regseg_d2.apps.compare.groups import Comparison, Estimate, Group, config_differences
from regseg_d2.apps.compare.runs import REGULARIZERS
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.keys import flatten_config
from regseg_d2.evaluation.metrics import json_number


def render(
    groups: Sequence[Group],
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
    *,
    format: str = "text",
    per_class: bool = True,
) -> str:
    """Returns all tables of a comparison, in a format of ``formats.TABLE_FORMATS``."""
    parts: list[Table | str] = [_scores(groups), *_differences(comparisons)]
    parts += what_is_missing(groups, comparisons)
    parts += [
        f"{comparison.group.name}: no gain is claimed, because {objection}."
        for comparison in comparisons
        for objection in comparison.objections
    ]
    if per_class:
        parts += _classes(groups, comparisons)
    settings = _settings(groups)
    if settings is not None:
        parts.append(settings)
    parts += [f"Note: {note}" for note in notes]
    style = TABLE_FORMATS[format]
    written = [style.paragraph(part) if isinstance(part, str) else style.table(part) for part in parts]
    return "\n\n".join(written) + "\n"


def what_is_missing(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> list[str]:
    """Says what runs to add where there is nothing to compare; empty where there is."""
    if any(comparison.differences for comparison in comparisons):
        return []
    if len(groups) == 1:
        number = len(groups[0].runs)
        runs = "One run" if number == 1 else f"{number} runs that differ in their seed alone"
        other = "one with regularizers, or one with other settings against --baseline with this one"
        if groups[0].first.regularizers:
            other = "a baseline, with the same config but MODEL.REGULARIZERS.NAMES []"
        return [f"{runs}: there is nothing to compare with. Give a run to compare with: {other}."]
    if not comparisons:
        return [
            "All runs are baselines: there is nothing to compare with them. Add runs with regularizers, or "
            "name those to measure against with --baseline."
        ]
    if all(comparison.baseline is None for comparison in comparisons):
        return [
            "There is no baseline: add a run with the same config but MODEL.REGULARIZERS.NAMES [], or name "
            "those to measure against with --baseline."
        ]
    return ["No group was evaluated on a data set of its baseline: evaluate both on the same one."]


def as_data(
    groups: Sequence[Group], comparisons: Sequence[Comparison], notes: Sequence[str]
) -> dict[str, Any]:
    """Returns a comparison as plain data for JSON; None stands for what is not defined."""
    return {
        "groups": [_group_data(group) for group in groups],
        "comparisons": [
            {
                "group": comparison.group.name,
                "baseline": comparison.baseline.name if comparison.baseline else None,
                "objections": comparison.objections,
                "differences": [
                    {
                        "what": difference.what,
                        "delta": json_number(difference.delta),
                        "noise": json_number(difference.noise),
                        "verdict": difference.verdict,
                    }
                    for difference in comparison.differences
                ],
            }
            for comparison in comparisons
        ],
        "settings": config_differences(groups),
        "missing": what_is_missing(groups, comparisons),
        "notes": list(notes),
    }


def _group_data(group: Group) -> dict[str, Any]:
    datasets = {}
    for number, name in enumerate(group.datasets):
        datasets[name] = {
            "mIoU": _estimate_data(group.miou(name)),
            "drop": _estimate_data(group.drop(name)) if number else None,
            "IoU": {
                label: _estimate_data(group.class_iou(name, i))
                for i, label in enumerate(group.class_names(name))
            },
        }
    return {
        "name": group.name,
        "regularizers": list(group.first.regularizers),
        "runs": [str(run.path) for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "datasets": datasets,
    }


def _estimate_data(estimate: Estimate) -> dict[str, Any]:
    return {"mean": json_number(estimate.mean), "std": json_number(estimate.std), "seeds": estimate.count}


def _scores(groups: Sequence[Group]) -> Table:
    datasets = list(dict.fromkeys(name for group in groups for name in group.datasets))
    first, others = datasets[:1], datasets[1:]
    rows = []
    for group in groups:
        row = [group.name, str(len(group.runs)), _seeds(group)]
        row += [_show(group.miou(name)) if name in group.datasets else "-" for name in datasets]
        # A drop is measured from the data set that all groups have in the first column.
        comparable = group.datasets[:1] == first
        row += [_show(group.drop(name)) if comparable and name in group.datasets else "-" for name in others]
        rows.append(row)
    headers = ["", "runs", "seeds", *datasets, *(f"drop to {name}" for name in others)]
    return Table("mIoU (%), mean ± standard deviation over seeds", headers, rows)


def _differences(comparisons: Sequence[Comparison]) -> list[Table]:
    rows = [
        [
            comparison.group.name,
            comparison.baseline.name if comparison.baseline else "-",
            difference.what,
            _signed(difference.delta),
            _plain(difference.noise),
            difference.verdict,
        ]
        for comparison in comparisons
        for difference in comparison.differences
    ]
    headers = ["", "against", "on", "difference", "spread over seeds", "verdict"]
    return [Table("Differences to the baseline", headers, rows)] if rows else []


def _classes(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> list[Table]:
    """Each group beside its baseline; groups that no such table shows beside each other."""
    tables: list[Table] = []
    shown: set[int] = set()
    for comparison in comparisons:
        group, baseline = comparison.group, comparison.baseline
        for dataset in group.datasets if baseline is not None else ():
            # Other classes are named among the objections.
            if baseline is None or not group.has_classes_of(baseline, dataset):
                continue
            shown.update((id(group), id(baseline)))
            rows = []
            for index, name in enumerate(group.class_names(dataset)):
                new, old = group.class_iou(dataset, index), baseline.class_iou(dataset, index)
                rows.append([name, _show(old), _show(new), _signed(new.mean - old.mean)])
            headers = ["class", baseline.name, group.name, "difference"]
            tables.append(Table(_class_title(dataset), headers, rows))
    alone: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in groups:
        for dataset in group.datasets if id(group) not in shown else ():
            alone.setdefault((dataset, tuple(group.class_names(dataset))), []).append(group)
    for (dataset, names), members in alone.items():
        rows = [
            [name, *(_show(group.class_iou(dataset, index)) for group in members)]
            for index, name in enumerate(names)
        ]
        tables.append(Table(_class_title(dataset), ["class", *(group.name for group in members)], rows))
    return tables


def _class_title(dataset: str) -> str:
    return f"IoU (%) of each class on {dataset}"


def _settings(groups: Sequence[Group]) -> Table | None:
    defaults = flatten_config(get_regseg_cfg())
    rows = [
        [key, *("-" if value is None else str(value) for value in row)]
        for key, row in config_differences(groups).items()
        if not _is_default_of_regularizer(key, row, defaults)
    ]
    return Table("Settings that differ", ["key", *(group.name for group in groups)], rows) if rows else None


def _is_default_of_regularizer(key: str, row: Sequence[Any], defaults: Mapping[str, Any]) -> bool:
    """Whether groups differ in a key only because one trains with that regularizer and another does not."""
    return key.startswith(REGULARIZERS) and all(value in (None, defaults.get(key)) for value in row)


def _seeds(group: Group) -> str:
    return " ".join(str(run.seed) for run in group.runs)


def _show(estimate: Estimate) -> str:
    if math.isnan(estimate.std):
        return _plain(estimate.mean)
    return f"{estimate.mean:.2f} ± {estimate.std:.2f}"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"
