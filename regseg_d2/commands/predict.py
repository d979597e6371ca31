"""``regseg predict --model RUN --input PHOTOS --output FOLDER``: predicts images and videos.

PHOTOS is an image, a folder (with its sub-folders), a pattern in quotes, a video, or the number of a camera.
Of each image FOLDER gets ``labels/NAME.png`` (class indices), ``colors/NAME.png`` (the same as a palette
image) and ``overlays/NAME.png`` (the classes over the image, with a legend); of each video
``videos/NAME.mp4``. What cannot be read is named and left out; the exit status is then 1. It is 2 where an
argument, the config or the weights cannot be used. In place of ``--model``: ``--config-file FILE`` and,
behind everything, ``MODEL.WEIGHTS FILE``.
"""

from __future__ import annotations

import argparse
import sys

from regseg_d2.apps.predict import predict_files
from regseg_d2.apps.videos import PaintOptions
from regseg_d2.commands.arguments import add_model_arguments, command_parser
from regseg_d2.common.errors import errors_end_the_program


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--input", required=True, action="append", metavar="PHOTOS", help="what to predict; may be repeated"
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FOLDER",
        help="folder to write to (default: demo in the run's folder)",
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, metavar="X", help="of the overlays (default: %(default)s)"
    )
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="NAME", help="paint these classes only (default: all)"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="predict every N-th frame of a video"
    )
    parser.add_argument(
        "--max-frames", type=int, default=0, metavar="N", help="stop after N frames (default: at the end)"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Predicts, and ends with the exit status."""
    args = parse_arguments()
    with errors_end_the_program():
        complete = predict_files(
            args.config_file,
            args.opts,
            source=args.input,
            model=args.model,
            output=args.output,
            options=PaintOptions(args.opacity, tuple(args.classes), args.every, args.max_frames),
        )
    sys.exit(0 if complete else 1)
