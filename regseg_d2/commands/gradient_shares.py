"""Prints how much each loss of a trained model pulls at the backbone, beside the cross entropy.

A loss whose gradient is a hundredth of the cross entropy's can neither help nor harm: raise its weight, or
train longer.

Example:
    regseg gradient-shares --config-file output/run/config.yaml MODEL.WEIGHTS output/run/model_final.pth
"""

from __future__ import annotations

import argparse

import regseg_d2.segmentor  # noqa: F401
from regseg_d2.apps import gradient_shares
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.config.files import load_config


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--batches", type=int, default=4, help="training batches (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    if args.batches < 1:
        parser.error(f"--batches is {args.batches}; expected 1 or more")
    with errors_end_the_program():
        print(gradient_shares.run(load_config(args.config_file, args.opts), args.batches))
