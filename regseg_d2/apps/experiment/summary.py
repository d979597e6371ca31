"""What an experiment found about one arm, in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

from regseg_d2.apps.experiment.report_input import read_results
from regseg_d2.apps.experiment.scores import Scores
from regseg_d2.apps.experiment.tables import seed_list


def summarize(results_folder: Path, arm: str) -> str:
    """Says what the primary number of an experiment did with an arm.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    scores = Scores(read_results(results_folder))
    primary, condition = scores.primary(), scores.results.primary.condition
    compared = scores.compare(condition, primary)
    if arm not in compared or not compared[arm][0].seeds:
        return f"The experiment '{scores.results.name}' has no pairs of runs of {arm} yet."
    pairs, comparison = compared[arm]
    interval = ""
    if not math.isnan(comparison.interval[0]):
        interval = f", 95 % interval {comparison.interval[0]:+.2f} to {comparison.interval[1]:+.2f}"
    return (
        f"Over {comparison.count} paired runs (seeds {seed_list(pairs.seeds)}, experiment "
        f"'{scores.results.name}'), {arm} changed {primary.name} on {primary.dataset} by "
        f"{comparison.mean:+.2f}{interval}: {comparison.verdict}."
    )
