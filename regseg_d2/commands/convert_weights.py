"""``regseg convert-weights --from mmseg IN OUT --config-file FILE``: converts another package's checkpoint.

OUT is what MODEL.WEIGHTS of that config loads. (MODEL.WEIGHTS takes IN as it is, too.)
"""

from __future__ import annotations

import argparse
import logging

from regseg_d2.apps.convert_weights import convert_file
from regseg_d2.commands.arguments import command_parser
from regseg_d2.common.errors import errors_end_the_program, printable_lines
from regseg_d2.weights.published import SOURCES


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("input", metavar="IN", help=".pth, .pt, .bin, .safetensors or .pkl file")
    parser.add_argument("output", metavar="OUT", help=".pth file to write")
    parser.add_argument(
        "--from", dest="source", required=True, choices=list(SOURCES), help="where IN is from"
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the network")
    parser.add_argument(
        "--min-backbone-share",
        type=float,
        metavar="X",
        help="take a backbone of which whole stages are missing, if this share of its tensors is there "
        "(default: every stage)",
    )
    parser.add_argument("--backbone-only", action="store_true", help="leave the head of IN out")
    parser.add_argument("--list", action="store_true", help="print each tensor that is used")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read files that can run code (their code runs!)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser.parse_intermixed_args()


def main() -> None:
    """Converts the file and prints what became of it."""
    args = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with errors_end_the_program():
        text = convert_file(
            args.input,
            args.output,
            source=args.source,
            config_file=args.config_file,
            opts=args.opts,
            min_backbone_share=args.min_backbone_share,
            backbone_only=args.backbone_only,
            list_used=args.list,
            trust_pickle=args.trust_pickle,
        )
    print(printable_lines(text))
