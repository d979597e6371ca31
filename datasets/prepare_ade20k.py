"""Checks a copy of ADE20K with 150 classes (ADEChallengeData2016). Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_ade20k.py

Every image and label is read once; ``ADEChallengeData2016/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.ade20k import ARCHIVES, prepare_ade20k


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = preparation_parser(__doc__, ARCHIVES).parse_args(arguments)
    return run_preparation(lambda: prepare_ade20k(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
