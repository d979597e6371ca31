"""Keys of the data sets."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Adds keys of ``DATASETS`` and ``DATALOADER``."""
    # YAML files that declare data sets (docs/own_data.md), relative to the config file that names them, else
    # to the working folder. Their splits are names for DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.DECLARED = []

    # Share of the training images that is trained on, drawn from SEED; for experiments with few labels.
    cfg.DATASETS.TRAIN_FRACTION = 1.0
    # The share is taken of each "folder", of each "sequence" (file names up to the first underscore), of
    # each at least one image; or of all images together ("").
    cfg.DATASETS.TRAIN_FRACTION_BY = ""

    # A training file that goes missing or is damaged while the run lasts: "stop", or "skip", which puts
    # another sample in its place, the same for every number of workers and processes. Evaluation always
    # stops: scores of fewer images could not be compared.
    cfg.DATALOADER.BAD_FILES = "stop"
    # With "skip": the run stops when more samples than this are found to be unusable.
    cfg.DATALOADER.MAX_BAD_FILES = 10

    # Frequencies of the classes for CLASS_WEIGHTING, as tools/check_dataset.py NAME --json FILE writes them;
    # "" counts the labels of DATASETS.TRAIN when the run begins, once (OUTPUT_DIR/label_counts.npz).
    cfg.DATASETS.FREQUENCIES = ""
    # Batches that each loader worker has ready, 1 or more.
    cfg.DATALOADER.PREFETCH = 2
    # Detectron2's DATALOADER.SAMPLER_TRAIN is TrainingSampler, RepeatFactorTrainingSampler (with
    # REPEAT_THRESHOLD and REPEAT_SQRT) or RareClassTrainingSampler, whose keys these are (docs/imbalance.md).
    cfg.DATALOADER.RARE_CLASS = CfgNode()
    # The lower, the more often rare classes are drawn; above 0, 0.01 to 0.1 is usual.
    cfg.DATALOADER.RARE_CLASS.TEMPERATURE = 0.01
    # Pixels of a class in an image that is drawn for it ...
    cfg.DATALOADER.RARE_CLASS.MIN_PIXELS = 3000
    # ... and pixels of it that the crop should show: a crop with fewer is drawn again, up to 10 times.
    cfg.DATALOADER.RARE_CLASS.MIN_CROP_PIXELS = 1500
