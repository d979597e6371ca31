"""Makes the labels of COCO-Stuff 10K (version 1.1, 171 classes) from its MATLAB files.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_coco_stuff_10k.py

Every image and label is then read once; ``coco_stuff10k/splits.json`` lists the images of each split and
counts the labelled pixels of each class. Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.coco_stuff_10k import prepare_coco_stuff_10k

main = partial(prepare_coco_stuff_10k.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
