"""Predicts images: ``regseg predict --config-file FILE --input PHOTOS --output FOLDER MODEL.WEIGHTS FILE``.

PHOTOS is an image, a folder (with its sub-folders) or a pattern in quotes. Of each image FOLDER gets
``labels/NAME.png`` (class indices), ``colors/NAME.png`` (the same as a palette image) and
``overlays/NAME.png`` (the classes over the image, with a legend). An image that cannot be read is named and
left out; the exit status is then 1. It is 2 where an argument, the config or the weights cannot be used.
"""

from __future__ import annotations

import argparse
import sys

from regseg_d2.apps.predict import predict_files
from regseg_d2.common.errors import errors_end_the_program


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the trained model")
    parser.add_argument("--input", required=True, metavar="PHOTOS", help="image, folder or pattern")
    parser.add_argument(
        "--output", default="", metavar="FOLDER", help="folder to write to (default: OUTPUT_DIR/demo)"
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, metavar="X", help="of the overlays (default: %(default)s)"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="changes to the config: MODEL.WEIGHTS FILE"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Predicts the images and ends with the exit status."""
    args = parse_arguments()
    with errors_end_the_program():
        complete = predict_files(
            args.config_file, args.opts, source=args.input, output=args.output, opacity=args.opacity
        )
    sys.exit(0 if complete else 1)
