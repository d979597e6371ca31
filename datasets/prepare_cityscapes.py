"""Checks a copy of Cityscapes and writes ``labelTrainIds``, without cityscapesscripts.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_cityscapes.py

Training here reads ``labelIds`` and needs no ``labelTrainIds``: those are for other tools.
Every image and label is read once; ``cityscapes/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.cityscapes import ARCHIVES, prepare_cityscapes


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = preparation_parser(__doc__, ARCHIVES).parse_args(arguments)
    return run_preparation(lambda: prepare_cityscapes(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
