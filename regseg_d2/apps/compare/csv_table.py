"""A comparison as one table for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from regseg_d2.apps.compare.groups import Comparison, Estimate, Group
from regseg_d2.drawing.figures.tables import csv_text

COLUMNS = (
    *("group", "runs", "seeds", "dataset", "score", "class", "mean", "std"),
    *("baseline", "difference", "spread", "verdict", "objections"),
)


def csv_table(groups: Sequence[Group], comparisons: Sequence[Comparison], *, per_class: bool = True) -> str:
    """Returns CSV with a row for each group, data set, and score.

    That is ``mIoU``, the ``drop`` to the data set from the first one, or ``IoU`` of a class, in percent with
    six digits. What is not defined is empty. Rows of classes have a difference, and no verdict.
    """
    by_group = {id(comparison.group): comparison for comparison in comparisons}
    rows = []
    for group in groups:
        comparison = by_group.get(id(group), Comparison(group, None))
        seeds = " ".join(str(run.seed) for run in group.runs)
        start = {"group": group.name, "runs": len(group.runs), "seeds": seeds}
        found = [*_means(comparison), *(_classes(comparison) if per_class else ())]
        rows += [[{**start, **row}.get(column) for column in COLUMNS] for row in found]
    return csv_text(COLUMNS, rows)


def _means(comparison: Comparison) -> Iterator[dict[str, Any]]:
    group, baseline = comparison.group, comparison.baseline
    differences = {difference.what: difference for difference in comparison.differences}
    for number, dataset in enumerate(group.datasets):
        scores = {"mIoU": (dataset, group.miou(dataset))}
        if number:
            scores["drop"] = (f"drop to {dataset}", group.drop(dataset))
        for score, (what, estimate) in scores.items():
            row = _score(dataset, score, "", estimate)
            found = differences.get(what)
            if baseline is not None and found is not None:
                row |= {"baseline": baseline.name, "difference": found.delta, "spread": found.noise}
                row["verdict"] = found.verdict
            yield {**row, "objections": "; ".join(comparison.objections)}


def _classes(comparison: Comparison) -> Iterator[dict[str, Any]]:
    group, baseline = comparison.group, comparison.baseline
    for dataset in group.datasets:
        compared = baseline if baseline is not None and group.has_classes_of(baseline, dataset) else None
        for index, name in enumerate(group.class_names(dataset)):
            estimate = group.class_iou(dataset, index)
            row = _score(dataset, "IoU", name, estimate)
            if compared is not None:
                difference = estimate.mean - compared.class_iou(dataset, index).mean
                row |= {"baseline": compared.name, "difference": difference}
            yield row


def _score(dataset: str, score: str, class_name: str, estimate: Estimate) -> dict[str, Any]:
    numbers = {"mean": estimate.mean, "std": estimate.std}
    return {"dataset": dataset, "score": score, "class": class_name, **numbers}
