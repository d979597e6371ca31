"""Checks a copy of COCO-Stuff 164K (171 classes). Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_coco_stuff_164k.py

Every image and label is read once; ``coco_stuff164k/splits.json`` lists the images of each split and counts
the labelled pixels of each class.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.coco_stuff_164k import ARCHIVES, prepare_coco_stuff_164k


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = preparation_parser(__doc__, tuple(ARCHIVES)).parse_args(arguments)
    return run_preparation(lambda: prepare_coco_stuff_164k(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
