"""The tables of a comparison: as text, as Markdown, and as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from regseg_d2.apps.compare.groups import Comparison, Estimate, Group, config_differences
from regseg_d2.apps.compare.runs import REGULARIZERS
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.keys import flatten_config
from regseg_d2.evaluation.metrics import json_number

TABLE_FORMATS = {"text": "simple", "markdown": "github"}


def render(
    groups: Sequence[Group],
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
    *,
    format: str = "text",
    per_class: bool = True,
) -> str:
    """Returns all tables of a comparison."""
    style = TABLE_FORMATS[format]
    parts = [_title("mIoU (%), mean ± standard deviation over seeds", format), _scores(groups, style)]
    if comparisons:
        parts += [_title("Differences to the baseline", format), _differences(comparisons, style)]
        parts += [
            f"{comparison.group.name}: no gain is claimed, because {objection}."
            for comparison in comparisons
            for objection in comparison.objections
        ]
    if per_class:
        for comparison in comparisons:
            if comparison.baseline is not None:
                parts += _classes(comparison, comparison.baseline, format)
    parts += [_title("Settings that differ", format), _settings(groups, style)]
    parts += [f"Note: {note}" for note in notes]
    return "\n\n".join(parts) + "\n"


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
        "notes": list(notes),
    }


def _group_data(group: Group) -> dict[str, Any]:
    datasets = {}
    for number, name in enumerate(group.datasets):
        classes = [item["name"] for item in group.first.evaluations[name]["classes"]]
        datasets[name] = {
            "mIoU": _estimate_data(group.miou(name)),
            "drop": _estimate_data(group.drop(name)) if number else None,
            "IoU": {label: _estimate_data(group.class_iou(name, i)) for i, label in enumerate(classes)},
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


def _title(text: str, format: str) -> str:
    return f"### {text}" if format == "markdown" else f"== {text} =="


def _scores(groups: Sequence[Group], style: str) -> str:
    datasets = list(dict.fromkeys(name for group in groups for name in group.datasets))
    first, others = datasets[0], datasets[1:]
    rows = []
    for group in groups:
        row = [group.name, len(group.runs), " ".join(str(run.seed) for run in group.runs)]
        row += [_show(group.miou(name)) if name in group.datasets else "-" for name in datasets]
        # A drop is measured from the data set that all groups have in the first column.
        comparable = group.datasets[:1] == [first]
        row += [_show(group.drop(name)) if comparable and name in group.datasets else "-" for name in others]
        rows.append(row)
    headers = ["", "runs", "seeds", *datasets, *(f"drop to {name}" for name in others)]
    return _table(rows, headers, style)


def _differences(comparisons: Sequence[Comparison], style: str) -> str:
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
    return _table(rows, ["", "against", "on", "difference", "spread over seeds", "verdict"], style)


def _classes(comparison: Comparison, baseline: Group, format: str) -> list[str]:
    group, parts = comparison.group, []
    for dataset in group.datasets:
        if dataset not in baseline.datasets:
            continue
        names = [item["name"] for item in group.first.evaluations[dataset]["classes"]]
        if names != [item["name"] for item in baseline.first.evaluations[dataset]["classes"]]:
            continue  # named among the objections
        rows = []
        for index, name in enumerate(names):
            new, old = group.class_iou(dataset, index), baseline.class_iou(dataset, index)
            rows.append([name, _show(old), _show(new), _signed(new.mean - old.mean)])
        parts.append(_title(f"IoU (%) of each class on {dataset}", format))
        parts.append(_table(rows, ["class", baseline.name, group.name, "difference"], TABLE_FORMATS[format]))
    return parts


def _settings(groups: Sequence[Group], style: str) -> str:
    differences = config_differences(groups)
    if not differences:
        return "None but the seed."
    defaults = flatten_config(get_regseg_cfg())
    rows = [
        [key, *("-" if value is None else str(value) for value in row)]
        for key, row in differences.items()
        if not _is_default_of_regularizer(key, row, defaults)
    ]
    return _table(rows, ["key", *(group.name for group in groups)], style)


def _is_default_of_regularizer(key: str, row: Sequence[Any], defaults: Mapping[str, Any]) -> bool:
    """Whether groups differ in a key only because one trains with that regularizer and another does not."""
    return key.startswith(REGULARIZERS) and all(value in (None, defaults.get(key)) for value in row)


def _table(rows: list[list[Any]], headers: Sequence[str], style: str) -> str:
    # The cells are texts already; tabulate must not read them as numbers and round them again.
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(
        rows, headers=headers, tablefmt=style, disable_numparse=True, colalign=alignment if rows else None
    )


def _show(estimate: Estimate) -> str:
    if math.isnan(estimate.std):
        return _plain(estimate.mean)
    return f"{estimate.mean:.2f} ± {estimate.std:.2f}"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"
