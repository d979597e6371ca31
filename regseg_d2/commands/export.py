"""Exports a trained network.

``regseg export --config-file FILE --format onnx --output FILE.onnx MODEL.WEIGHTS FILE.pth``

The file takes images (N, 3, H, W) of float32, 0 to 255, in the channel order of INPUT.FORMAT. It is compared
with the network at three sizes, and not written where they do not agree (docs/export.md). The exit status is
2 where something cannot be used, or exported.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from regseg_d2.apps.export.exporting import FORMAT_NAMES, Request, export_network
from regseg_d2.apps.export.network import OUTPUTS
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program


def parse_size(text: str) -> tuple[int, int]:
    """Reads ``HEIGHTxWIDTH``."""
    height, width = text.lower().split("x")
    return int(height), int(width)


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Reads ``HEIGHTxWIDTH,HEIGHTxWIDTH``."""
    return [parse_size(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the trained model")
    parser.add_argument("--format", required=True, metavar="NAME", help=f"one of {', '.join(FORMAT_NAMES)}")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--predicts",
        default=OUTPUTS[0],
        metavar="WHAT",
        help="labels (N, H, W), scores (N, K, H, W), or head-scores, those before they are stretched "
        "over the image (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="HxW", help="take images of this size only (default: of any size)"
    )
    parser.add_argument(
        "--without-normalization",
        action="store_true",
        help="take images that are normalized already, (value - mean) / std",
    )
    parser.add_argument(
        "--check-sizes",
        type=parse_sizes,
        default=(),
        metavar="HxW,HxW",
        help="sizes to compare at (default: three around INPUT.CROP.SIZE)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=Request.tolerance,
        metavar="X",
        help="largest difference, as a share of the largest score (default: %(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="write FILE.int8.onnx, too, and evaluate both")
    parser.add_argument(
        "--calibration-set",
        default="",
        metavar="NAME",
        help="for --int8 (default: the first of DATASETS.TRAIN)",
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=Request.calibration_images,
        metavar="N",
        help="(default: %(default)s)",
    )
    parser.add_argument("--benchmark", action="store_true", help="measure the latency beside torch's")
    parser.add_argument("--rounds", type=int, default=15, help="of measuring it (default: %(default)s)")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="changes to the config: MODEL.WEIGHTS FILE"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Exports the network and prints how far the file is from it."""
    args = parse_arguments()
    warnings.simplefilter("ignore")  # of packages; what is wrong is found by the comparison
    with errors_end_the_program():
        export_network(
            Request(
                config_file=args.config_file,
                output=args.output,
                format=args.format,
                opts=args.opts,
                predicts=args.predicts,
                size=args.size,
                normalizes=not args.without_normalization,
                check_sizes=args.check_sizes,
                tolerance=args.tolerance,
                int8=args.int8,
                calibration_set=args.calibration_set,
                calibration_images=args.calibration_images,
                benchmark_rounds=args.rounds if args.benchmark else 0,
            )
        )
