"""The numbers at the top of the page: who is better, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regseg_d2.apps.explore.page.content import PageContent
from regseg_d2.evaluation.metrics import compute_metrics

# Signs of runs, which tell them apart without their colours; they begin again after the last.
MARKS = "●◆■▲▼★"


@dataclass(frozen=True)
class ClassGain:
    """What a run changes in the IoU of one class, in points of percent."""

    name: str
    gain: float


@dataclass(frozen=True)
class RunCard:
    """One run in short.

    Attributes:
        name: of the run.
        mark: sign that stands for it.
        lead: the leading metric; None where it has none.
        gain: its difference to the first run's; None for the first.
        better: classes whose IoU is higher than in the first run, the largest gain first.
        worse: classes whose IoU is lower, the largest loss first.
        best: whether no other run has a higher leading metric.
    """

    name: str
    mark: str
    lead: float | None
    gain: float | None
    better: Sequence[ClassGain]
    worse: Sequence[ClassGain]
    best: bool


@dataclass(frozen=True)
class ClassRow:
    """One class in the chart.

    Attributes:
        index: of the class.
        name: of the class.
        share: of the labelled pixels, in percent.
        ious: one a run, in percent; None where the class is in no label.
        gains: differences to the first run, one a later run.
        best: the highest IoU as it is written, where there are several runs.
    """

    index: int
    name: str
    share: float
    ious: Sequence[float | None]
    gains: Sequence[float | None]
    best: str


@dataclass(frozen=True)
class Overview:
    """All of the top of the page.

    Attributes:
        lead: name of the leading metric; empty where runs share none.
        cards: one a run.
        classes: rows, the largest gain of the last run first; with one run the lowest IoU first.
        absent: names of classes that no label has.
        metrics: name and one value a run, None where a run lacks it.
        config: key and one value a run, None where a run lacks it.
    """

    lead: str
    cards: Sequence[RunCard]
    classes: Sequence[ClassRow]
    absent: Sequence[str]
    metrics: Sequence[tuple[str, Sequence[float | None]]]
    config: Sequence[tuple[str, Sequence[str | None]]]


def number(value: float | None, digits: int = 1) -> str:
    """A number in text; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A difference in text: with its sign, but for one that is zero as it is written."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text) else text.replace("−0.0", "0.0")


def overview_of(content: PageContent) -> Overview:
    """Compares the runs of a page by their confusion matrices and metrics."""
    ious = np.stack([compute_metrics(np.asarray(run.confusion).T).iou for run in content.runs])
    names = [name for run in content.runs for name in run.metrics]
    shared = [name for name in dict.fromkeys(names) if all(name in run.metrics for run in content.runs)]
    lead = shared[0] if shared else ""
    keys = dict.fromkeys(key for run in content.runs for key in run.config)
    rows = _class_rows(content, ious)
    return Overview(
        lead=lead,
        cards=_cards(content, ious, lead),
        classes=[row for row in rows if row.ious[0] is not None],
        absent=[row.name for row in rows if row.ious[0] is None],
        metrics=[(name, [run.metrics.get(name) for run in content.runs]) for name in dict.fromkeys(names)],
        config=[(key, [run.config.get(key) for run in content.runs]) for key in keys],
    )


def _cards(content: PageContent, ious: np.ndarray, lead: str) -> list[RunCard]:
    leads = [run.metrics.get(lead) for run in content.runs]
    known = [value for value in leads if value is not None and not math.isnan(value)]
    cards = []
    for r, run in enumerate(content.runs):
        gains = ious[r] - ious[0]
        order = np.argsort(-gains, kind="stable")
        value, first = leads[r], leads[0]
        cards.append(
            RunCard(
                name=run.name,
                mark=MARKS[r % len(MARKS)],
                lead=value,
                gain=value - first if r and value is not None and first is not None else None,
                better=[ClassGain(content.classes[k], gains[k]) for k in order if gains[k] > 0],
                worse=[ClassGain(content.classes[k], gains[k]) for k in order[::-1] if gains[k] < 0],
                best=len(known) > 1 and value == max(known),
            )
        )
    return cards


def _class_rows(content: PageContent, ious: np.ndarray) -> list[ClassRow]:
    pixels = np.asarray(content.runs[0].confusion).sum(1)
    shares = 100 * pixels / max(int(pixels.sum()), 1)
    # What the last run gains on the first; one run alone is sorted by what it lacks.
    gains = ious[-1] - ious[0] if len(ious) > 1 else -ious[0]
    rows = []
    for k in np.argsort(-gains, kind="stable"):
        values = [None if math.isnan(value) else float(value) for value in ious[:, k]]
        present = [value for value in values if value is not None]
        rows.append(
            ClassRow(
                index=int(k),
                name=content.classes[k],
                share=float(shares[k]),
                ious=values,
                gains=[None if math.isnan(gain) else float(gain) for gain in ious[1:, k] - ious[0, k]],
                best=number(max(present)) if len(present) > 1 else "",
            )
        )
    return rows
