"""Checks a copy of COCO-Stuff 164K (171 classes). Nothing is converted.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_coco_stuff_164k.py

Every image and label is read once; ``coco_stuff164k/splits.json`` lists the images of each split and counts
the labelled pixels of each class.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.as_published import prepare_coco_stuff_164k

main = partial(prepare_coco_stuff_164k.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
