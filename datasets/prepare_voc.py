"""Checks a copy of Pascal VOC 2012 and makes the train_aug split of it and SBD.

    DETECTRON2_DATASETS=/path/to/datasets python datasets/prepare_voc.py

SBD's ``.mat`` files become ``VOCdevkit/VOC2012/SegmentationClassAug/*.png``; the list is
``ImageSets/Segmentation/trainaug.txt``. Every image and label is read once;
``VOCdevkit/VOC2012/splits.json`` lists the images of each split and counts the labelled pixels of each class.
Can be stopped and started again.
"""

import sys
from functools import partial

from regseg_d2.dataset_tools.preparation.voc import prepare_voc

main = partial(prepare_voc.main, __doc__)

if __name__ == "__main__":
    sys.exit(main())
