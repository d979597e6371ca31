"""Measures a trained model beside its mIoU: feature distances, calibration, rare classes, corrupted images.

Example:
    regseg measure --config-file output/run/config.yaml MODEL.WEIGHTS output/run/model_final.pth
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tabulate import tabulate

import regseg_d2.data  # noqa: F401
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program
from regseg_d2.common.files import write_text
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.engine.devices import limit_cpu_threads, with_available_device
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.evaluation.corruptions import KINDS
from regseg_d2.evaluation.measuring import measure
from regseg_d2.segmentor.places import classified_feature_tap


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="what to measure on (default: DATASETS.TEST)"
    )
    parser.add_argument("--tap", help="the feature (default: what the classifier reads)")
    parser.add_argument(
        "--train-images", type=int, metavar="N", help="training images for class centers (default: all)"
    )
    parser.add_argument(
        "--corruptions",
        nargs="*",
        default=list(KINDS),
        choices=list(KINDS),
        help="kinds of corrupted images; none: --corruptions alone (default: all)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers there as JSON, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser.parse_args()


def main() -> None:
    """Measures, prints a table, and writes the JSON."""
    args = parse_arguments()
    with errors_end_the_program():
        cfg = with_available_device(load_config(args.config_file, args.opts))
        limit_cpu_threads()
        register_declared(cfg.DATASETS.DECLARED)
        model = load_trained_model(cfg).model
        results = measure(
            cfg,
            model,
            args.datasets or cfg.DATASETS.TEST,
            tap=args.tap or classified_feature_tap(model),
            train_images=args.train_images,
            corruptions=args.corruptions,
        )
        names = next(iter(results.values()), {})
        rows = [[name, *(values[name] for values in results.values())] for name in names]
        print(tabulate(rows, headers=["measure", *results], floatfmt=".3f", tablefmt="github"))
        if args.output:
            write_text(args.output, json.dumps(results, indent=2, sort_keys=True, allow_nan=False) + "\n")
