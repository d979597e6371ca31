"""Checks a copy of Cityscapes and writes ``labelTrainIds``, without cityscapesscripts.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_cityscapes.py

Training here reads ``labelIds`` and needs no ``labelTrainIds``: those are for other tools.
Every image and label is read once; ``cityscapes/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.cityscapes import prepare_cityscapes

main = partial(prepare_cityscapes.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
