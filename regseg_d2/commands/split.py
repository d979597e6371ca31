"""``regseg split``: divides a data set into lists of exact sizes; each class has its share in each.

    regseg split --declared farm.yaml --parts train=0.8 val=0.2 --output farm/lists

Labels are read once. ``--by sequence`` keeps frames of a film together, ``--by folder`` those in one
folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program, printable_lines
from regseg_d2.data.subsets import GROUPINGS
from regseg_d2.dataset_tools.splitting import split_dataset


def _part(text: str) -> tuple[str, float]:
    name, equals, share = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SHARE, such as train=0.8")
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {share!r} is no number") from None


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data sets, taken together")
    parser.add_argument(
        "--declared", action="append", default=[], metavar="FILE", help="YAML file that declares data sets"
    )
    parser.add_argument("--parts", nargs="+", required=True, type=_part, metavar="NAME=SHARE")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder of the lists")
    parser.add_argument(
        "--by", default="", choices=[g for g in GROUPINGS if g], help="what stays together in one part"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one divides in another way")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that read labels"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Writes the lists, and prints what is in them."""
    args = parse_arguments()
    with errors_end_the_program():
        text = split_dataset(
            args.names,
            dict(args.parts),
            args.output,
            declared=args.declared,
            grouping=args.by,
            seed=args.seed,
            workers=args.workers,
        )
    print(printable_lines(text))
