"""The tables of a report, for the terminal and for the page alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from regseg_d2.data.balance import enet_weights, median_frequency_weights
from regseg_d2.dataset_tools.inspection.collect import DatasetFacts
from regseg_d2.dataset_tools.inspection.samples import Problem

# Rows of file values in a table; instance ids can be thousands.
_MOST_VALUES = 60


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: heads of the columns.
        rows: texts, as many in each row as there are columns.
        shares: length of a bar for each row, 0 to 1; None for a table without bars.
        colors: RGB of a field before each row; None for a table without fields.
        note: a sentence below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[float] | None = None
    colors: Sequence[Sequence[int]] | None = None
    note: str = ""


def summary_lines(facts: DatasetFacts) -> list[str]:
    """Says in a few lines what there is."""
    balance = facts.balance
    pairs = len(facts.samples)
    usable = sum(not sample.problems for sample in facts.samples)
    lines = [f"{pairs} pairs of image and label, {usable} of them without a problem."]
    if facts.sizes:
        by_area = sorted(facts.sizes, key=lambda size: size[0] * size[1])
        (common, count), *_ = facts.sizes.most_common(1)
        lines.append(
            f"Sizes (height x width): smallest {_size(by_area[0])}, largest {_size(by_area[-1])}, most "
            f"frequent {_size(common)} ({count} images)."
        )
    if facts.values:
        lines.append(
            f"{int((balance.pixels > 0).sum())} of {len(facts.classes)} classes occur; "
            f"{100 * balance.ignored_share:.2f} % of the pixels are ignored."
        )
    return lines


def by_kind(problems: Sequence[Problem]) -> list[tuple[str, list[Problem]]]:
    """Problems of a kind together, in the order in which they are."""
    return [(kind, list(group)) for kind, group in groupby(problems, key=lambda problem: problem.kind)]


def tables_of(facts: DatasetFacts) -> list[Table]:
    """Returns the tables of one data set; those without a row are left out."""
    tables = [_kinds(facts), _sizes(facts), _values(facts), _classes(facts)]
    return [table for table in tables if table.rows]


def class_weight_lines(facts: DatasetFacts) -> list[tuple[str, str]]:
    """Names two kinds of class weights and writes them as lists; nothing without a labelled pixel."""
    if not facts.balance.pixels.any():
        return []
    return [
        ("inverse logarithm of the frequency (ENet)", _weights(enet_weights(facts.balance))),
        ("median frequency", _weights(median_frequency_weights(facts.balance))),
    ]


def _weights(weights: np.ndarray) -> str:
    return "[" + ", ".join(f"{weight:.4g}" for weight in weights) + "]"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _kinds(facts: DatasetFacts) -> Table:
    rows = [
        (what, kind, str(count))
        for what, kinds in (("images", facts.image_kinds), ("labels", facts.label_kinds))
        for kind, count in kinds.most_common()
    ]
    return Table("Formats and modes", ("files", "format and mode", "number"), rows)


def _sizes(facts: DatasetFacts) -> Table:
    common = facts.sizes.most_common(10)
    total = max(sum(facts.sizes.values()), 1)
    rest = len(facts.sizes) - len(common)
    return Table(
        "Sizes of the images",
        ("height x width", "images"),
        [(_size(size), str(count)) for size, count in common],
        shares=[count / total for _, count in common],
        note=f"{rest} more sizes." if rest else "",
    )


def _values(facts: DatasetFacts) -> Table:
    total = sum(count.pixels for count in facts.values.values()) or 1
    shown = list(facts.values.items())
    if len(shown) > _MOST_VALUES:
        frequent = Counter({value: count.pixels for value, count in shown}).most_common(_MOST_VALUES)
        shown = sorted((value, facts.values[value]) for value, _ in frequent)
    rest = len(facts.values) - len(shown)
    return Table(
        "Values in the label files",
        ("value", "meaning", "pixels", "share", "files"),
        [
            (str(v), _meaning(v, facts), str(c.pixels), f"{100 * c.pixels / total:.3f} %", str(c.files))
            for v, c in shown
        ],
        shares=[count.pixels / total for _, count in shown],
        note=f"The {_MOST_VALUES} most frequent; {rest} more." if rest else "",
    )


def _meaning(value: int, facts: DatasetFacts) -> str:
    target = facts.meanings.get(value)
    if target is None:
        return "nothing!"
    if target == facts.reader.ignore_value:
        return "ignored"
    return f"{target} {facts.classes[target]}"


def _classes(facts: DatasetFacts) -> Table:
    balance = facts.balance
    if not balance.num_images:
        return Table("Classes", (), ())
    enet, median = enet_weights(balance), median_frequency_weights(balance)
    return Table(
        "Classes",
        ("index", "class", "pixels", "share", "images", "ENet", "median"),
        [
            (
                str(i),
                name,
                str(balance.pixels[i]),
                f"{100 * balance.shares[i]:.3f} %",
                str(balance.images_with_class[i]),
                f"{enet[i]:.3g}",
                f"{median[i]:.3g}" if balance.pixels[i] else "never seen",
            )
            for i, name in enumerate(facts.classes)
        ],
        shares=balance.shares.tolist(),
        colors=facts.colors.tolist(),
        note=(
            f"Shares are of the pixels that have a class; {balance.ignored_pixels} pixels are ignored. ENet "
            "and median: the class weights below."
        ),
    )
