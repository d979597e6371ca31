"""Checks a copy of ADE20K with 150 classes (ADEChallengeData2016). Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_ade20k.py

Every image and label is read once; ``ADEChallengeData2016/splits.json`` lists
the images of each split and counts the labelled pixels of each class. Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.as_published import prepare_ade20k

main = partial(prepare_ade20k.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
