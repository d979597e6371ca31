"""Makes the labels of COCO-Stuff 10K (version 1.1, 171 classes) from its MATLAB files.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_coco_stuff_10k.py

Every image and label is then read once; ``coco_stuff10k/splits.json`` lists the images of each split and
counts the labelled pixels of each class. Can be stopped and started again.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.coco_stuff_10k import ARCHIVES, prepare_coco_stuff_10k


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = preparation_parser(__doc__, ARCHIVES).parse_args(arguments)
    return run_preparation(lambda: prepare_coco_stuff_10k(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
