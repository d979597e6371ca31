"""The report's tables: for readers as Markdown, with all digits as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from regseg_d2.apps.experiment.report_input import Results
from regseg_d2.apps.experiment.scores import IOU, MEASURE, METRIC, TAIL, Pairs, Quantity, Scores, mean_and_std
from regseg_d2.apps.experiment.statistics import GAIN, LOSS, Comparison
from regseg_d2.drawing.figures.tables import csv_text

NOTHING = "–"
Compared = dict[str, tuple[Pairs, Comparison]]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Returns a Markdown table.

    So many columns as ``texts`` says, from the left, are text, set to the left; the others are numbers.
    """
    safe = [[str(cell).replace("|", "\\|") for cell in row] for row in [headers, *rows]]
    align = ["left"] * min(texts, len(headers)) + ["right"] * max(len(headers) - texts, 0)
    return tabulate(
        safe[1:], safe[0], tablefmt="pipe", disable_numparse=True, colalign=align if rows else None
    )


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number for a reader; a difference has its sign."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"  # no minus zero


def estimate(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """``mean ± standard deviation``, without the latter for one value."""
    mean, std = mean_and_std(values)
    return number(mean, digits, sign) + ("" if math.isnan(std) else f" ± {number(std, digits)}")


def interval(ends: tuple[float, float], digits: int = 2) -> str:
    """``low to high``."""
    return NOTHING if math.isnan(ends[0]) else " to ".join(number(end, digits, sign=True) for end in ends)


def p_value(p: float) -> str:
    """A p-value for a reader."""
    return NOTHING if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def seed_list(seeds: Iterable[int]) -> str:
    """``0-9``, ``0-2, 5`` or ``–``."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    parts = [str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in runs]
    return ", ".join(parts) or NOTHING


def digits_of(scores: Scores, quantity: Quantity) -> int:
    """Digits behind the point: two for percentages, more for what is small."""
    runs = scores.results.records.values()
    values = [v for v in (scores.value(run, quantity) for run in runs) if v is not None]
    return 2 if max(map(abs, values), default=100.0) >= 10 else 4


def primary_table(compared: Compared, digits: int) -> str:
    """The table with the verdicts."""
    rows = [
        [
            arm,
            pairs.control,
            f"**{result.verdict}**" if result.verdict in (GAIN, LOSS) else result.verdict,
            seed_list(pairs.seeds),
            estimate(pairs.arm_values, digits),
            estimate(pairs.control_values, digits),
            estimate(pairs.differences, digits, sign=True),
            interval(result.simultaneous, digits),
            p_value(result.p),
            p_value(result.holm),
        ]
        for arm, (pairs, result) in compared.items()
    ]
    headers = ["arm", "control", "verdict", "paired seeds", "arm's", "control's", "difference"]
    return markdown([*headers, "simultaneous interval", "p", "p (Holm)"], rows, texts=4)


def scores_table(scores: Scores, condition: str, quantities: Sequence[Quantity]) -> str:
    """Mean ± standard deviation of each arm, over all of its seeds."""
    rows = []
    for arm in scores.results.arms_of(condition):
        runs = scores.results.runs(condition, arm)
        values = [list(scores.values(condition, arm, each).values()) for each in quantities]
        cells = [
            estimate(v, digits_of(scores, q)) + (f" ({len(v)})" if 0 < len(v) < len(runs) else "")
            for q, v in zip(quantities, values, strict=True)
        ]
        rows.append([arm, str(len(runs)), *cells])
    return markdown(["arm", "seeds", *map(_title, quantities)], rows)


def differences_table(scores: Scores, compared: dict[Quantity, Compared]) -> str:
    """Mean paired difference of each arm to its control, and its 95 % interval, for several numbers."""
    arms = list(next(iter(compared.values()), {}))
    rows = []
    for arm in arms:
        cells, counts = [], []
        for quantity, of_arms in compared.items():
            pairs, result = of_arms[arm]
            digits = digits_of(scores, quantity)
            between = "" if math.isnan(result.interval[0]) else f" ({interval(result.interval, digits)})"
            cells.append(number(result.mean, digits, sign=True) + between)
            counts.append(result.count)
        pairs_text = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"
        rows.append([arm, pairs.control, pairs_text, *cells])
    return markdown(["arm", "control", "pairs", *map(_title, compared)], rows, texts=2)


def _title(quantity: Quantity) -> str:
    name = "mean IoU of the tail" if quantity.kind == TAIL else quantity.name
    return f"{name} (less is better)" if quantity.lower_is_better else name


def classes_table(scores: Scores, condition: str, dataset: str, classes: Sequence[str]) -> str:
    """IoU of each class: the baselines' means, and the paired differences of each arm to its control."""
    results = scores.results
    methods = results.methods_of(condition)
    roots = [arm for arm in results.arms_of(condition) if results.arms[arm] is None]
    shares, tail = scores.shares(dataset), scores.tail(dataset)
    rows = []
    for name in classes:
        quantity = Quantity(dataset, IOU, name)
        share = f"{100 * shares[name]:.2f}" if name in shares else NOTHING
        row = [f"{name} (tail)" if name in tail else name, share]
        row += [estimate(list(scores.values(condition, arm, quantity).values()), 1) for arm in roots]
        row += [estimate(scores.pairs(condition, arm, quantity).differences, 1, sign=True) for arm in methods]
        rows.append(row)
    return markdown(["class", "% of pixels", *roots, *(f"Δ {arm}" for arm in methods)], rows)


def runs_table(results: Results) -> str:
    """What was run: seeds, schedule, config and code of each arm."""
    rows = []
    for condition, arm in dict.fromkeys(key[:2] for key in results.records):
        runs = results.runs(condition, arm)
        row = [condition, arm, results.arms[arm] or NOTHING, seed_list(runs)]
        row.append(", ".join(str(n) for n in sorted({run.iterations for run in runs.values()})))
        row.append(", ".join(f"`{digest}`" for digest in sorted({r.config_digest for r in runs.values()})))
        row.append(", ".join(f"`{short(name)}`" for name in sorted({r.commit for r in runs.values()})))
        row.append(str(sum(run.skipped_steps for run in runs.values())))
        rows.append(row)
    headers = ["condition", "arm", "control", "seeds", "iterations", "config digest", "commit"]
    return markdown([*headers, "skipped steps"], rows, texts=7)


def short(commit: str) -> str:
    """A commit as readers write it; ``+changes`` stays."""
    name, plus, changes = commit.partition("+")
    is_hash = len(name) == 40 and all(c in "0123456789abcdef" for c in name)
    return (name[:10] if is_hash else name) + plus + changes


def csv_files(scores: Scores, compared: dict[tuple[str, Quantity], Compared]) -> dict[str, str]:
    """All tables with all digits: ``{file name: content}``."""
    results, primary = scores.results, scores.primary()
    where = ["condition", "dataset", "kind", "name"]
    values, means, differences = [], [], []
    for (condition, quantity), of_arms in compared.items():
        key = [condition, quantity.dataset, quantity.kind, quantity.name]
        for arm in results.arms_of(condition):
            by_seed = scores.values(condition, arm, quantity)
            values += [[*key, arm, seed, value] for seed, value in by_seed.items()]
            means.append([*key, arm, len(by_seed), *mean_and_std(list(by_seed.values()))])
        decided = (condition, quantity) == (results.primary.condition, primary)
        for arm, (pairs, c) in of_arms.items():
            row = [*key, arm, pairs.control, c.count, c.mean, c.std, *c.interval, c.p, c.holm]
            differences.append([*row, *c.simultaneous, c.verdict if decided else ""])
    runs = [
        [*name, r.commit, r.config_digest, r.iterations, r.skipped_steps]
        for name, r in results.records.items()
    ]
    diagnostics = [
        [*name, key, value]
        for name, r in results.records.items()
        for key, value in sorted(r.diagnostics.items())
    ]
    return {
        "values.csv": csv_text([*where, "arm", "seed", "value"], values),
        "means.csv": csv_text([*where, "arm", "seeds", "mean", "std"], means),
        "differences.csv": csv_text(
            [*where, "arm", "control", "pairs", "mean", "std", "low_95", "high_95", "p", "p_holm"]
            + ["low_simultaneous", "high_simultaneous", "verdict"],
            differences,
        ),
        "classes.csv": _classes_csv(scores),
        "runs.csv": csv_text(
            ["condition", "arm", "seed", "commit", "config_digest", "iterations", "skipped_steps"], runs
        ),
        "diagnostics.csv": csv_text(["condition", "arm", "seed", "name", "value"], diagnostics),
    }


def _classes_csv(scores: Scores) -> str:
    results, rows = scores.results, []
    for condition in results.conditions:
        for dataset in results.datasets():
            shares, tail = scores.shares(dataset), scores.tail(dataset)
            for name in scores.classes(dataset):
                quantity = Quantity(dataset, IOU, name)
                key = [condition, dataset, name, shares.get(name), int(name in tail)]
                for arm in results.arms_of(condition):
                    mine = list(scores.values(condition, arm, quantity).values())
                    row = [*key, arm, len(mine), *mean_and_std(mine)]
                    control = results.arms[arm]
                    paired = [] if control is None else scores.pairs(condition, arm, quantity).differences
                    rows.append([*row, control, len(paired), *mean_and_std(paired)])
    headers = ["condition", "dataset", "class", "pixel_share", "tail", "arm", "seeds", "mean", "std"]
    return csv_text([*headers, "control", "pairs", "difference", "difference_std"], rows)


def all_quantities(scores: Scores, dataset: str) -> list[Quantity]:
    """Metrics, tail and measures of a data set: what arms are compared on."""
    tail = [Quantity(dataset, TAIL, "tail IoU")] if scores.tail(dataset) else []
    return [*scores.quantities(dataset, METRIC), *tail, *scores.quantities(dataset, MEASURE)]
