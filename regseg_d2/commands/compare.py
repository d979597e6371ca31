"""Compares the evaluations of runs: ``regseg compare RUN RUN ... [--baseline RUN ...]``.

The exit code is 0 where no gain can be claimed, too: the tables say why.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from regseg_d2.apps.compare.csv_table import csv_table
from regseg_d2.apps.compare.formats import TABLE_FORMATS
from regseg_d2.apps.compare.groups import compare_groups, group_runs
from regseg_d2.apps.compare.report import as_data, render, what_is_missing
from regseg_d2.apps.compare.runs import load_run
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program, printable_lines


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs to measure against (default: the runs without regularizers)",
    )
    parser.add_argument(
        "--format",
        choices=[*TABLE_FORMATS, "csv", "json"],
        default="text",
        help="of the tables; latex needs the package booktabs, csv is one table of all",
    )
    parser.add_argument("--no-classes", action="store_true", help="leave the tables of classes out")
    parser.add_argument(
        "--pictures",
        metavar="FILE.png",
        help="also write the images on which the runs differ most, with the prediction of each run",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set of the pictures (default: the first one that all runs were evaluated on)",
    )
    args = parser.parse_args()
    if args.dataset is not None and args.pictures is None:
        parser.error("--dataset is that of --pictures FILE.png, which is missing")
    if args.pictures is not None and Path(args.pictures).suffix.lower() != ".png":
        parser.error(f"--pictures is '{args.pictures}'; expected the name of a .png file")
    return args


def main() -> None:
    """Compares the runs, prints the tables, and draws the pictures."""
    args = parse_arguments()
    with errors_end_the_program():
        baseline_runs = [load_run(folder) for folder in args.baseline]
        groups, notes = group_runs([*baseline_runs, *(load_run(folder) for folder in args.runs)])
        chosen = [g for g in groups if any(run in baseline_runs for run in g.runs)] if args.baseline else None
        comparisons = compare_groups(groups, chosen)
        if args.format == "json":
            print(json.dumps(as_data(groups, comparisons, notes), indent=2, allow_nan=False))
        elif args.format == "csv":
            print(csv_table(groups, comparisons, per_class=not args.no_classes), end="")
            for line in [*what_is_missing(groups, comparisons), *notes]:
                print(printable_lines(line), file=sys.stderr)
        else:
            text = render(groups, comparisons, notes, format=args.format, per_class=not args.no_classes)
            print(printable_lines(text), end="")
        if args.pictures is not None:
            from regseg_d2.apps.compare.pictures import picture_of_groups

            picture_of_groups(groups, args.dataset, Path(args.pictures))
            print(f"Wrote {args.pictures}", file=sys.stderr)
