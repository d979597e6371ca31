"""Checks a data set before training: ``regseg check NAME [NAME ...]`` or ``--declared farm.yaml``.

Reads every pair of image and label, lists all problems, and reports sizes, label values and class balance.
Pictures that two of the named splits share are a problem, too. The exit status is 0 without a problem, 1 with
some, and 2 where an argument or a declaration cannot be used.
"""

from __future__ import annotations

import argparse
import sys

from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.dataset_tools.inspection.tool import check_named_datasets


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data sets")
    parser.add_argument(
        "--declared",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file that declares data sets; without NAME all its splits are checked (may be repeated)",
    )
    parser.add_argument("--output", default="", metavar="FILE", help="HTML page to write, with pictures")
    parser.add_argument("--json", default="", metavar="FILE", help="file to write class frequencies to")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read (default: by the number of pairs)"
    )
    parser.add_argument(
        "--num-shown", type=int, default=12, metavar="N", help="samples on the page (default: %(default)s)"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Checks the data sets and ends with the exit status."""
    args = parse_arguments()
    with errors_end_the_program():
        clean = check_named_datasets(
            args.names,
            declared=args.declared,
            output=args.output,
            frequencies=args.json,
            workers=args.workers,
            num_shown=args.num_shown,
        )
    sys.exit(0 if clean else 1)
