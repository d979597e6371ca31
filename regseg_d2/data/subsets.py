"""Training on a share of the labels: which images these are."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from regseg_d2.common.errors import check_key
from regseg_d2.data.records import load_training_records

logger = logging.getLogger(__name__)

#: What images are counted by, so that each group gives its share.
GROUPINGS: Mapping[str, Callable[[Path], str]] = {
    "": lambda file: "",
    "folder": lambda file: str(file.parent),
    # Video frames: what stands before the first underscore, as in 0016E5_07959.png.
    "sequence": lambda file: f"{file.parent}/{file.stem.partition('_')[0]}",
}


def load_train_subset(cfg: CfgNode, seed: int) -> list[dict]:
    """Loads ``DATASETS.TRAIN``, or the ``DATASETS.TRAIN_FRACTION`` of it that a seed draws.

    The same seed draws the same images; the records are in the order of the data sets.

    Raises:
        ConfigError: a key has an unusable value, or a data set's name is unknown.
        DatasetError: a data set cannot be loaded.
    """
    records = load_training_records(cfg.DATASETS.TRAIN)
    fraction, grouping = cfg.DATASETS.TRAIN_FRACTION, cfg.DATASETS.TRAIN_FRACTION_BY
    known = f"one of {tuple(GROUPINGS)}"
    check_key("DATASETS.TRAIN_FRACTION_BY", grouping, grouping in GROUPINGS, known)
    check_key("DATASETS.TRAIN_FRACTION", fraction, 0 < fraction <= 1, "a number above 0, up to 1")
    if fraction == 1:
        return records
    groups = [(r["dataset_name"], GROUPINGS[grouping](Path(r["file_name"]))) for r in records]
    chosen = draw_subset(groups, fraction, seed)
    logger.info(
        "Training on %d of %d images (DATASETS.TRAIN_FRACTION %g).", len(chosen), len(records), fraction
    )
    return [records[i] for i in chosen]


def draw_subset(groups: Sequence[tuple[str, str]], fraction: float, seed: int) -> list[int]:
    """Draws a share in (0, 1] of each group, at least one of it.

    ``groups`` has the group of each item. Returns the positions of the chosen items, increasing.
    """
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    rng = np.random.default_rng((seed, len(groups)))
    chosen: list[int] = []
    for _, positions in sorted(members.items()):
        number = max(1, round(fraction * len(positions)))
        chosen += rng.permutation(positions)[:number].tolist()
    return sorted(chosen)
