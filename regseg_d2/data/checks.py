"""Checks of the data sets before the first step, each with a message that says what to do."""

from __future__ import annotations

import logging

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regseg_d2.common.errors import ConfigError, DatasetError, check_key
from regseg_d2.data.bad_files import skips_bad_files
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.data.mapper import read_pair
from regseg_d2.data.records import check_equal_classes, load_records

logger = logging.getLogger(__name__)

# Test sets below this size get a warning.
_FEW_IMAGES = 20


def check_datasets(cfg: CfgNode) -> None:
    """Checks the data sets of a run: lists of classes, ignore values and the first samples.

    Every data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST`` is loaded; of each the first
    ``DATASETS.CHECK_SAMPLES`` samples are read. Of training data, some may be unusable if
    ``DATALOADER.BAD_FILES`` is "skip".

    Raises:
        ConfigError: a data set's name is unknown, or the number of classes or the ignore value of the
            head is not that of the data.
        DatasetError: a data set cannot be loaded, class lists differ, or a sample cannot be used.
    """
    num_samples = cfg.DATASETS.CHECK_SAMPLES
    check_key("DATASETS.CHECK_SAMPLES", num_samples, num_samples >= 0, "0 or more")
    names = list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    records = {name: load_records(name) for name in names}
    check_equal_classes(names)
    for name in names:
        check_head(cfg, name)
    for name in cfg.DATASETS.TEST:
        if warning := few_images(len(records[name])):
            logger.warning("%s: %s", name, warning)
    for name in names:
        skip_bad = skips_bad_files(cfg) and name in cfg.DATASETS.TRAIN and name not in cfg.DATASETS.TEST
        check_samples(name, records[name][:num_samples], skip_bad=skip_bad)


def few_images(number: int) -> str:
    """Says what a score of so few test images is worth; ``""`` where there are enough."""
    if not 0 < number < _FEW_IMAGES:
        return ""
    return (
        f"{number} image(s) to test on: one image more or less moves mIoU by points, so that no method can "
        "be told from chance, nor a best checkpoint from a lucky one. Move images from training to here."
    )


def check_head(cfg: CfgNode, dataset_name: str) -> None:
    """Compares the head's number of classes and ignore value with a data set's.

    Raises:
        ConfigError: they differ.
        DatasetError: the data set's metadata names no classes.
    """
    reader = label_reader_for(dataset_name)
    head = cfg.MODEL.SEM_SEG_HEAD
    if reader.num_classes != head.NUM_CLASSES:
        raise ConfigError(
            f'MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but "{dataset_name}" has '
            f"{reader.num_classes} classes; set it to {reader.num_classes}."
        )
    if reader.ignore_value != head.IGNORE_VALUE:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but the ignore_label of "
            f'"{dataset_name}" is {reader.ignore_value}; set them to the same value, or pixels without a '
            "label would count."
        )


def check_samples(dataset_name: str, records: list[dict], *, skip_bad: bool = False) -> None:
    """Reads records' images and labels and looks for what training would stumble over.

    With ``skip_bad``, samples that cannot be used are warned about, as long as one can.

    Raises:
        DatasetError: a file cannot be read, image and label differ in size, a label holds a value that
            means nothing, the labels look like a binary mask of 0 and 255, or no pixel has a class.
    """
    if not records:
        return
    reader = label_reader_for(dataset_name)
    pixels = np.zeros(reader.num_classes, dtype=np.int64)
    ignored = 0
    bad: list[DatasetError] = []
    for record in records:
        try:
            _, label = read_pair(record, reader)
        except DatasetError as error:
            if not skip_bad:
                raise
            bad.append(error)
            continue
        valid = label[label != reader.ignore_value]
        pixels += np.bincount(valid, minlength=reader.num_classes)
        ignored += label.size - valid.size
    if len(bad) == len(records):
        raise bad[0]
    for damage in bad:
        logger.warning("%s: a sample that will be skipped (DATALOADER.BAD_FILES): %s", dataset_name, damage)
    _check_binary_mask(dataset_name, reader, pixels, ignored)
    if not pixels.any():
        raise DatasetError(
            f'All pixels of the first {len(records)} labels of "{dataset_name}" have the ignore value '
            f"{reader.ignore_value}, so there is nothing to learn from; the first is "
            f"{records[0]['sem_seg_file_name']}. Check its label_map."
        )
    absent = [MetadataCatalog.get(dataset_name).stuff_classes[i] for i in np.flatnonzero(pixels == 0)]
    logger.info(
        "%s: the first %d samples are fine; %.1f %% of their pixels are ignored%s.",
        dataset_name,
        len(records),
        100 * ignored / (ignored + pixels.sum()),
        f"; classes without a pixel there: {', '.join(absent)}" if absent else "",
    )


def _check_binary_mask(dataset_name: str, reader: LabelReader, pixels: np.ndarray, ignored: int) -> None:
    """Finds {0, 255} masks, whose foreground would silently count as "ignore"."""
    has_two_classes = reader.label_map is None and reader.ignore_value == 255 and len(pixels) == 2
    if has_two_classes and ignored and not pixels[1]:
        raise DatasetError(
            f'The labels of "{dataset_name}" hold only 0 and 255, and 255 is its ignore value: these look '
            "like binary masks whose foreground would be ignored. Declare the data set with "
            "label_map={0: 0, 255: 1}; if 255 does mean ignore, say so with "
            "label_map={0: 0, 1: 1, 255: 255}."
        )
