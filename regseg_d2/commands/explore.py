"""Shows what trained networks have learnt: figures, the numbers behind them, and one page.

Examples:
    regseg explore output/baseline output/car --output output/explored
    regseg explore output/baseline --weights converted configs/cityscapes/fcn_resnet50.yaml ours.pth
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.apps.compare.runs import names_of_runs
from regseg_d2.apps.explore.exploration import explore
from regseg_d2.apps.explore.runs import open_sources
from regseg_d2.apps.explore.study import Options
from regseg_d2.apps.explore.watching import follow
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.config.files import load_config
from regseg_d2.engine.devices import limit_cpu_threads
from regseg_d2.engine.trained_model import config_of_run
from regseg_d2.evaluation.looking.projections import METHODS


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="OUTPUT_DIR of a finished run")
    parser.add_argument(
        "--weights",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "CONFIG", "FILE"),
        help="a network without a run's folder, such as one of converted weights",
    )
    parser.add_argument("--output", type=Path, default=Path("output/explored"), metavar="FOLDER")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first one of DATASETS.TEST")
    parser.add_argument("--tap", default="", help="the feature (default: what the classifier reads)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at the first N images only")
    defaults = Options()
    parser.add_argument("--images", type=int, default=defaults.images, metavar="N", help="images on the page")
    parser.add_argument(
        "--pixels-per-class", type=int, default=defaults.pixels_per_class, metavar="N", help="in projections"
    )
    parser.add_argument(
        "--projections", nargs="+", default=list(defaults.projections), choices=METHODS, help="of pixels"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="follow runs that train: write anew after each of their checkpoints",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of what is drawn at random")
    args = parser.parse_args()
    for name in ("limit", "images", "pixels_per_class"):
        number = getattr(args, name)
        if number is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} is {number}; expected 1 or more")
    return args


def main() -> None:
    """Writes the folder, once or after each checkpoint."""
    args = parse_arguments()
    with errors_end_the_program():
        limit_cpu_threads()
        if args.watch:
            follow(args.runs, lambda: write(args))
        else:
            write(args)


def write(args: argparse.Namespace) -> None:
    """Looks at the networks, and writes the folder."""
    folders = dict(zip(names_of_runs(args.runs), args.runs, strict=True))
    configs = {name: config_of_run(folder) for name, folder in folders.items()}
    configs |= {name: load_config(config, ["MODEL.WEIGHTS", file]) for name, config, file in args.weights}
    sources = open_sources(configs, folders, dataset=args.dataset, tap=args.tap, limit=args.limit)
    options = Options(
        args.seed, args.pixels_per_class, args.pixels_per_class, args.images, tuple(args.projections)
    )
    explore(sources, args.output, options, command=shlex.join(["regseg", "explore", *sys.argv[1:]]))
