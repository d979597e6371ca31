"""Makes the labels of Pascal Context (59 classes, or 60 with background) and the lists of its splits.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_pascal_context.py

The labels come from ``trainval_merged.json``, or from the MATLAB files in ``trainval``. Every image and label
is then read once; ``VOCdevkit/VOC2010/pascal_context_splits.json`` lists the images of each split and counts
the labelled pixels of each class. Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.pascal_context import prepare_pascal_context

main = partial(prepare_pascal_context.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
