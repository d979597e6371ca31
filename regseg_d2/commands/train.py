"""``regseg train --config-file FILE [--eval-only] [KEY VALUE ...]``: trains or evaluates a segmentor."""

import gc

# Importing torch and Detectron2 makes very many objects and no garbage: looking for it takes half a second.
gc.disable()

import regseg_d2.segmentor  # noqa: E402, F401
from regseg_d2.engine.launch import build_argument_parser, run  # noqa: E402
from regseg_d2.engine.main import main as train  # noqa: E402

# What is there now stays: later collections need not look at it.
gc.freeze()
gc.enable()


def main() -> None:
    """Does what the command line says, in as many processes as it says."""
    run(train, build_argument_parser().parse_args())
