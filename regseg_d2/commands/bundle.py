"""Writes one folder that holds a trained model: ``regseg bundle RUN --output FOLDER --license apache-2.0``.

RUN is the OUTPUT_DIR of a run. FOLDER gets the weights without what training alone needs, the whole config,
names and colours of the classes, and a model card with the results that were measured. It loads anywhere, by
``regseg_d2.Predictor.from_bundle``; ``--push OWNER/NAME`` uploads it to the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from regseg_d2.apps.bundle.build import BundleOptions, write_bundle
from regseg_d2.apps.bundle.push import push_bundle
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--weights",
        default="",
        metavar="NAME",
        help="a checkpoint of the run, such as model_best.pth (default: the final one, else the last)",
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="of the model, as the hub calls it: apache-2.0, cc-by-4.0",
    )
    parser.add_argument(
        "--dataset", default="", metavar="TEXT", help="what it was trained on (default: DATASETS.TRAIN)"
    )
    parser.add_argument(
        "--title", default="", metavar="TEXT", help="of the card (default: the name of RUN's folder)"
    )
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="a repository that --push makes is private")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a bundle that is there, in FOLDER and on the hub"
    )
    return parser.parse_args()


def main() -> None:
    """Writes the folder, and uploads it."""
    args = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = BundleOptions(args.weights, args.title, args.license, args.dataset, args.overwrite)
    with errors_end_the_program():
        write_bundle(args.run, args.output, options)
        if args.push:
            push_bundle(args.output, args.push, private=args.private, overwrite=args.overwrite)
