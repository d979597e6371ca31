#!/usr/bin/env python3
"""Compares the evaluations of runs: ``compare_runs.py RUN RUN ... [--baseline RUN ...]``.

The exit code is 0 where no gain can be claimed, too: the tables say why.
"""

from __future__ import annotations

import argparse
import json

from regseg_d2.apps.compare.groups import compare_groups, group_runs
from regseg_d2.apps.compare.report import TABLE_FORMATS, as_data, render
from regseg_d2.apps.compare.runs import load_run
from regseg_d2.common.errors import errors_end_the_program, printable_lines


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs to measure against (default: the runs without regularizers)",
    )
    parser.add_argument("--format", choices=[*TABLE_FORMATS, "json"], default="text")
    parser.add_argument("--no-classes", action="store_true", help="leave the tables of classes out")
    return parser.parse_args()


def main() -> None:
    """Compares the runs and prints the tables."""
    args = parse_arguments()
    with errors_end_the_program():
        baseline_runs = [load_run(folder) for folder in args.baseline]
        groups, notes = group_runs([*baseline_runs, *(load_run(folder) for folder in args.runs)])
    chosen = [g for g in groups if any(run in baseline_runs for run in g.runs)] if args.baseline else None
    comparisons = compare_groups(groups, chosen)
    if args.format == "json":
        print(json.dumps(as_data(groups, comparisons, notes), indent=2, allow_nan=False))
    else:
        text = render(groups, comparisons, notes, format=args.format, per_class=not args.no_classes)
        print(printable_lines(text), end="")


if __name__ == "__main__":
    main()
