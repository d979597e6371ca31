"""What several command lines have."""

from __future__ import annotations

import argparse


def command_parser(text: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help begins with a command's docstring, as it stands there."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what names a trained model: a folder, or a config with changes that name the weights."""
    parser.add_argument("--model", default="", metavar="FOLDER", help="folder of a run, or of a bundle")
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the trained model")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="changes to the config: MODEL.WEIGHTS FILE"
    )
