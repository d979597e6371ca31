"""Finished runs: their configs and evaluations, read from their folders."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.json_files import read_json
from regseg_d2.common.schema import Number, Part, Whole, checked
from regseg_d2.common.yaml_files import read_yaml
from regseg_d2.config.keys import flatten_config

# Keys in which the runs of one group may differ.
RUN_KEYS = ("SEED", "OUTPUT_DIR")
# Keys that say how a run is watched, stored or fed, and cannot change what is learned.
NEUTRAL_KEYS = (
    "DATALOADER.NUM_WORKERS",
    "DATASETS.CHECK_SAMPLES",
    "DATASETS.TEST",
    "FIND_UNUSED_PARAMETERS",
    "LOG_PERIOD",
    "WRITERS",
    "VIS_PERIOD",
    "VERSION",
    "CUDNN_BENCHMARK",
    "DETERMINISTIC",
    "MODEL.DEVICE",
    "MODEL.TRUST_PICKLE",
    "MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD",
    "MODEL.REGULARIZERS.WARN_ZERO_STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_MAX_TO_KEEP",
    "SOLVER.COMPILE.ENABLED",
    "SOLVER.COMPILE.BACKEND",
    "SOLVER.EMA.ENABLED",
    "SOLVER.EMA.DECAY",
    "TEST.EXPECTED_RESULTS",
    "TEST.NUM_IMAGES_SHOWN",
    "TEST.NUM_PIXELS_SHOWN",
    "TEST.LOGITS_DEVICE",
    "TEST.METRICS",
    "TEST.PREDICTIONS",
    "TEST.SLIDE.TILE_BATCH",
)
# Without early stopping, neither can these.
EARLY_STOP_KEYS = ("TEST.EVAL_PERIOD", "TEST.BEST_METRIC")
# Stages of the head that a method may ask for, in which a baseline on the same schedule may differ: CAR's
# linear convolution, MDRL's stage with its memory.
METHOD_KEYS = (
    "MODEL.SEM_SEG_HEAD.AUGMENT",
    "MODEL.SEM_SEG_HEAD.PROJECTION",
    "MODEL.SEM_SEG_HEAD.PROJECTION_KERNEL_SIZE",
    "MODEL.SEM_SEG_HEAD.LINEAR_CHANNELS",
)
REGULARIZERS = "MODEL.REGULARIZERS."


class CompareError(UserError):
    """Runs that cannot be read or compared."""


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        config: ``{dotted key: value}`` of its config.yaml.
        evaluations: ``{data set: content of its JSON}``, in the order of DATASETS.TEST.
    """

    path: Path
    config: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]

    @property
    def seed(self) -> int:
        """SEED of the run."""
        return self.config["SEED"]

    @property
    def regularizers(self) -> tuple[str, ...]:
        """Names of the regularizers it trained with."""
        return tuple(sorted(self.config[f"{REGULARIZERS}NAMES"]))

    def settings(self) -> dict[str, Any]:
        """Returns the part of the config that can change what is learned, the seed left out."""
        left_out = {*RUN_KEYS, *NEUTRAL_KEYS}
        if not self.config.get("TEST.PATIENCE"):
            left_out.update(EARLY_STOP_KEYS)
        return {
            key: value
            for key, value in self.config.items()
            if key not in left_out and not self._is_of_unused_regularizer(key)
        }

    def schedule(self) -> dict[str, Any]:
        """Returns the settings that a run and its baseline must share."""
        return {
            key: value
            for key, value in self.settings().items()
            if not key.startswith(REGULARIZERS) and key not in METHOD_KEYS
        }

    def miou(self, dataset: str) -> float:
        """Returns the mIoU on a data set in percent, NaN where it is not defined."""
        return _or_nan(self.evaluations[dataset]["metrics"]["mIoU"])

    def class_ious(self, dataset: str) -> list[float]:
        """Returns each class's IoU in percent, NaN for classes that are not in the data set."""
        return [_or_nan(item["IoU"]) for item in self.evaluations[dataset]["classes"]]

    def _is_of_unused_regularizer(self, key: str) -> bool:
        section, dot, _ = key.removeprefix(REGULARIZERS).partition(".")
        # PNE@aux reads the section of PNE, too.
        used = {*self.regularizers, *(name.partition("@")[0] for name in self.regularizers)}
        return key.startswith(REGULARIZERS) and bool(dot) and section not in used


def load_run(folder: str | Path) -> Run:
    """Reads the config and the evaluations of a run.

    Raises:
        CompareError: something is missing or cannot be read.
    """
    path = Path(folder)
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise CompareError(f"'{path}' is no run: it has no config.yaml. Give the OUTPUT_DIR of a run.")
    try:
        flat = flatten_config(read_yaml(config_file))
    except ConfigError as error:
        raise CompareError(str(error)) from error
    checked(
        _Config, flat, config_file, error=CompareError, advice="It is no config of a run of this package."
    )
    files = {file.stem: file for file in sorted((path / "evaluation").glob("*.json"))}
    order = [name for name in flat["DATASETS.TEST"] if name in files]
    order += [name for name in files if name not in order and not name.endswith("_predictions")]
    if not order:
        raise CompareError(
            f"'{path}' has no evaluation: there is no JSON in '{path / 'evaluation'}'. Let it finish, or run "
            f"train_net.py --eval-only --resume with its config."
        )
    return Run(path, flat, {name: read_evaluation(files[name]) for name in order})


def names_of_runs(folders: Sequence[Path]) -> list[str]:
    """Names runs by their folders, with as many folders above them as tell them apart."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    longest = max(map(len, paths), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"A run is given twice: {', '.join(map(str, folders))}.")


def read_evaluation(file: Path) -> dict[str, Any]:
    """Reads the JSON of an evaluation.

    Raises:
        CompareError: it is no JSON, or not of this package.
    """
    content = read_json(file, CompareError)
    checked(_Evaluation, content, file, error=CompareError, advice="It is no evaluation of this package.")
    return content


class _Config(Part):
    """What is read of a run's config."""

    seed: int = Field(strict=True, alias="SEED")
    regularizers: list[str] = Field(alias="MODEL.REGULARIZERS.NAMES")
    test_sets: list[str] = Field(alias="DATASETS.TEST")


class _Metrics(Part):
    mIoU: Number | None


class _Class(Part):
    name: str
    IoU: Number | None
    pixels: Whole


class _Model(Part):
    completed_steps: Whole | None = None


class _Evaluation(Part):
    """What is read of an evaluation."""

    metrics: _Metrics
    classes: list[_Class]
    num_images: Whole
    model: _Model = _Model()  # not in old ones


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
