"""Makes the labels of Pascal Context (59 classes, or 60 with background) and the lists of its splits.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_pascal_context.py

The labels come from ``trainval_merged.json``, or from the MATLAB files in ``trainval``. Every image and label
is then read once; ``VOCdevkit/VOC2010/pascal_context_splits.json`` lists the images of each split and counts
the labelled pixels of each class. Can be stopped and started again.
"""

from __future__ import annotations

import sys

from regseg_d2.dataset_tools.preparation import preparation_parser, run_preparation
from regseg_d2.dataset_tools.preparation.pascal_context import ARCHIVES, SOURCES, prepare_pascal_context


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = preparation_parser(__doc__, tuple(ARCHIVES))
    parser.add_argument(
        "--source",
        choices=SOURCES,
        help="form of the labels to start from (default: json if trainval_merged.json is there)",
    )
    options = parser.parse_args(arguments)
    return run_preparation(lambda: prepare_pascal_context(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
