"""Parameters, FLOPs, time and memory of a config's network, without and with its regularizers.

Example:
    regseg analyze --config-file configs/camvid/deeplabv3_efficientnet_lite0_car.yaml --size 360 480
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from regseg_d2.apps.costs.model_costs import analyze, as_data, render
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.common.files import write_text
from regseg_d2.config.files import load_config


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML file (default: the defaults)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="image at inference (default: INPUT.CROP.SIZE)"
    )
    parser.add_argument(
        "--batch", type=int, default=2, help="images of a training step (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--only-counts", action="store_true", help="parameters and FLOPs alone")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    return parser.parse_args()


def main() -> None:
    """Analyzes the network and prints the table."""
    args = parse_arguments()
    with errors_end_the_program():
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.DEVICE = args.device
        costs = analyze(
            cfg,
            size=tuple(args.size or cfg.INPUT.CROP.SIZE),
            batch_size=args.batch,
            rounds=args.rounds,
            only_counts=args.only_counts,
        )
        print(render(costs), end="")
        if args.json:
            data = {"config_file": args.config_file, "overrides": args.opts, **as_data(costs)}
            write_text(args.json, json.dumps(data, indent=2, allow_nan=False) + "\n")
