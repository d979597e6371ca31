"""Checks a copy of CamVid. Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_camvid.py

Every image and label is read once; ``camvid/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.as_published import prepare_camvid

main = partial(prepare_camvid.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
