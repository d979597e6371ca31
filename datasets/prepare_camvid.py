"""Checks a copy of CamVid. Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_camvid.py

Every image and label is read once; ``camvid/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.camvid import prepare_camvid


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = preparation_parser(__doc__).parse_args(arguments)
    return run_preparation(lambda: prepare_camvid(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
