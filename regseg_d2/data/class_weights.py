"""Class weights of the pixel loss from measured frequencies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.common.json_files import read_json
from regseg_d2.data.balance import ClassBalance, enet_weights, median_frequency_weights
from regseg_d2.data.label_counts import training_label_counts
from regseg_d2.data.main_process import from_main_process

logger = logging.getLogger(__name__)

_KEY = "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING"


def inverse_weights(balance: ClassBalance) -> np.ndarray:
    """One over the share of the pixels, with mean 1 over the classes that occur; 1 for the others (K,)."""
    return _with_mean_one(balance.shares, balance.pixels > 0)


def effective_number_weights(balance: ClassBalance, beta: float) -> np.ndarray:
    """One over the effective number of images ``(K,)``, with mean 1 over the classes that occur; else 1.

    Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    equations 2 and 4: E_n = (1 - beta^n) / (1 - beta). n counts images that hold the class: pixels of one
    image are anything but independent samples, and their numbers make all E_n equal to 1 / (1 - beta).

    beta is in [0, 1); 0 weighs nothing, towards 1 the weights approach one over n.
    """
    number = balance.images_with_class.astype(np.float64)
    # In this form, exact also where beta is almost 1.
    effective = -np.expm1(number * np.log(beta)) / (1 - beta) if beta > 0 else np.ones(len(number))
    return _with_mean_one(effective, number > 0)


def _with_mean_one(number: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    weights = np.ones(len(number))
    inverse = 1 / number[occurs]
    weights[occurs] = inverse / inverse.mean() if occurs.any() else 1
    return weights


WEIGHTINGS: dict[str, Callable[[ClassBalance, float], np.ndarray]] = {
    "enet": lambda balance, beta: enet_weights(balance),
    "median_frequency": lambda balance, beta: median_frequency_weights(balance),
    "inverse": lambda balance, beta: inverse_weights(balance),
    "effective_number": effective_number_weights,
}


def measured_class_weights(cfg: CfgNode) -> list[float] | None:
    """One weight a class, as ``MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING`` says; None if the key is empty.

    The frequencies are those of the file ``DATASETS.FREQUENCIES``, or of the labels of ``DATASETS.TRAIN``,
    which the main process counts once a run.

    Raises:
        ConfigError: the key has an unknown value or contradicts CLASS_WEIGHTS, or the file cannot be used.
        DatasetError: the labels cannot be counted.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.CLASS_WEIGHTING:
        return None
    known, beta = f"one of {', '.join(WEIGHTINGS)}, or ''", head.CLASS_WEIGHTING_BETA
    check_key(_KEY, head.CLASS_WEIGHTING, head.CLASS_WEIGHTING in WEIGHTINGS, known)
    check_key(f"{_KEY}_BETA", beta, 0 <= beta < 1, "0 or more, and less than 1")
    if len(head.CLASS_WEIGHTS):
        raise ConfigError(
            f"{_KEY} is {head.CLASS_WEIGHTING}, and MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS gives weights too: "
            "empty one of them."
        )
    return from_main_process(lambda: _weights(cfg))


def _weights(cfg: CfgNode) -> list[float]:
    head = cfg.MODEL.SEM_SEG_HEAD
    if cfg.DATASETS.FREQUENCIES:
        balance = read_frequencies(cfg.DATASETS.FREQUENCIES, head.NUM_CLASSES)
    else:
        balance = training_label_counts(cfg).balance()
    weights = WEIGHTINGS[head.CLASS_WEIGHTING](balance, head.CLASS_WEIGHTING_BETA)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes") if cfg.DATASETS.TRAIN else None
    names = names or [str(index) for index in range(len(weights))]
    logger.info(
        "Class weights (%s): %s",
        head.CLASS_WEIGHTING,
        ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True)),
    )
    absent = [name for name, pixels in zip(names, balance.pixels, strict=True) if not pixels]
    if absent:
        logger.warning("Classes without a pixel in the training labels: %s", ", ".join(absent))
    return [float(weight) for weight in weights]


def read_frequencies(path: str | Path, num_classes: int) -> ClassBalance:
    """Reads the JSON that ``tools/check_dataset.py NAME --json FILE`` writes.

    Raises:
        ConfigError: the file is missing, not of this form, or about another number of classes.
    """
    try:
        content = read_json(Path(path))
    except ConfigError as error:
        raise ConfigError(
            f"DATASETS.FREQUENCIES: {path} cannot be read as JSON ({error}) tools/check_dataset.py NAME "
            "--json FILE writes it; with an empty key the training labels are counted."
        ) from error
    lists = ("pixels", "images_with_class", "pixels_of_images_with_class")
    numbers = ("num_images", "ignored_pixels")
    for key in (*lists, *numbers):
        value = content.get(key) if isinstance(content, dict) else None
        values = value if key in lists else [value]
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**63 for v in values):
            expected = "a list of whole numbers" if key in lists else "a whole number"
            raise ConfigError(f'DATASETS.FREQUENCIES: {path} has no "{key}" that is {expected}, 0 or more.')
        if key in lists and len(values) != num_classes:
            raise ConfigError(
                f'DATASETS.FREQUENCIES: "{key}" of {path} has {len(values)} numbers, but '
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; the file is about another data set."
            )
    arrays = {key: np.array(content[key], dtype=np.int64) for key in lists}
    return ClassBalance(**arrays, **{key: content[key] for key in numbers})
