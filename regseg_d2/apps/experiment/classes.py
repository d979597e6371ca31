"""How frequent the classes of an experiment are."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import regseg_d2.data  # noqa: F401  registers data sets
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.label_counts import count_label_files
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.records import load_training_records


def training_class_shares(cfg: CfgNode) -> dict[str, dict[str, float]]:
    """Counts the training labels of a config.

    Returns:
        ``{training set: {class: share of its labelled pixels}}``.

    Raises:
        UserError: the labels cannot be read.
    """
    register_declared(cfg.DATASETS.DECLARED)
    shares = {}
    for name in cfg.DATASETS.TRAIN:
        counts = count_label_files(load_training_records([name]), {name: label_reader_for(name)}, workers=0)
        pixels = counts.balance().pixels
        classes = MetadataCatalog.get(name).stuff_classes
        shares[name] = {each: float(p / pixels.sum()) for each, p in zip(classes, pixels, strict=True)}
    return shares
