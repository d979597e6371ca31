"""What the command lines of the preparation scripts share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from regseg_d2.common.errors import UserError, print_error, printable_lines
from regseg_d2.data.datasets.spec import datasets_root


def preparation_parser(description: str, archives: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Makes a parser of the arguments that every preparation script has.

    Args:
        description: what the script does.
        archives: names of the archives that it can unpack; without any there is no option ``--archives``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        metavar="FOLDER",
        help="folder of all data sets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that read and convert files; 0 works in this one (default: %(default)s)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="accept other numbers of images than the published ones, for a part of the data set",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="description of the splits to write (default: splits.json beside the data)",
    )
    if archives:
        parser.add_argument(
            "--archives",
            type=Path,
            metavar="FOLDER",
            help=f"check and unpack those of these archives that lie there: {', '.join(archives)}",
        )
    return parser


def run_preparation(prepare: Callable[[], list[str]]) -> int:
    """Runs a script's work and prints what it says, or the user's error.

    Args:
        prepare: returns lines for people.

    Returns:
        The exit status: 1 after an error.
    """
    try:
        lines = prepare()
    except UserError as error:
        print_error(error, "error: ")
        return 1
    except KeyboardInterrupt:
        print("stopped; start again to go on where it stopped", file=sys.stderr)
        return 130
    print(printable_lines("\n".join(lines)))
    return 0
