"""``regseg serve --model RUN``: a page in a browser on which a model predicts photos."""

from __future__ import annotations

import argparse

from regseg_d2.apps.predict import load_model
from regseg_d2.apps.serve import serve
from regseg_d2.commands.arguments import add_model_arguments, command_parser
from regseg_d2.common.errors import errors_end_the_program


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = command_parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 is for all who reach this machine (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    return parser.parse_intermixed_args()


def main() -> None:
    """Loads the model, and serves the page."""
    args = parse_arguments()
    with errors_end_the_program():
        predictor = load_model(args.config_file, args.opts, args.model)[0]()
        print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        serve(predictor, args.host, args.port)
