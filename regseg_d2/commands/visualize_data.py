"""Draws what the network sees in training: ``regseg visualize-data --config-file FILE [KEY VALUE ...]``.

Each sample is shown as the loader makes it (scaled, cropped, changed in colour, padded, mirrored), beside the
same with its labels; pixels without a label are hatched. The same SEED gives the same pictures.
"""

from __future__ import annotations

import argparse

from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program, printable
from regseg_d2.dataset_tools.inspection.training_samples import draw_training_samples


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the run")
    parser.add_argument("--num", type=int, default=16, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument(
        "--output",
        default="training_samples.png",
        metavar="PATH",
        help="a .png file for one sheet, or a folder for a picture of each sample (default: %(default)s)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser.parse_intermixed_args()


def main() -> None:
    """Draws the samples and prints which files were written."""
    args = parse_arguments()
    with errors_end_the_program():
        paths = draw_training_samples(args.config_file, args.opts, number=args.num, output=args.output)
    print("\n".join(f"Wrote {printable(str(path), None)}" for path in paths))
