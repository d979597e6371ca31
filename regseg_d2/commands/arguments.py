"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what names a trained model: a folder, or a config with changes that name the weights."""
    parser.add_argument("--model", default="", metavar="FOLDER", help="folder of a run, or of a bundle")
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the trained model")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="changes to the config: MODEL.WEIGHTS FILE"
    )
