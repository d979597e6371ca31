"""From a config and a checkpoint to a model that is ready to evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.segmentor.build import build_model

#: What a run calls the weights that it ends with.
FINAL_WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class TrainedModel:
    """A model with loaded weights.

    Attributes:
        model: the model, in evaluation mode, on the device of its config.
        completed_steps: steps that it was trained for, where the checkpoint says so.
    """

    model: nn.Module
    completed_steps: int | None


def load_trained_model(cfg: CfgNode, *, resume: bool = False) -> TrainedModel:
    """Builds the model of a config and loads MODEL.WEIGHTS into it.

    Args:
        cfg: the config, with a device that is there (``devices.with_available_device``).
        resume: take the last checkpoint of OUTPUT_DIR instead, where there is one.

    Raises:
        CheckpointError: there are no weights, or they do not fit the model.
    """
    model = build_model(cfg).eval()
    # Evaluation writes no checkpoint, and must not clear away files of a run that still does.
    checkpointer = SafeCheckpointer(
        model, cfg.OUTPUT_DIR, cfg=cfg, trust_pickle=cfg.MODEL.TRUST_PICKLE, save_to_disk=False
    )
    last = checkpointer.get_checkpoint_file() if resume else ""
    rest = checkpointer.load_for_evaluation(last or cfg.MODEL.WEIGHTS)
    steps = rest["iteration"] + 1 if isinstance(rest.get("iteration"), int) else None
    return TrainedModel(model, steps)


def weights_of_run(folder: str | Path) -> Path:
    """Finds the last weights of a run: the final ones, or else its last checkpoint.

    Raises:
        ConfigError: there are none yet.
    """
    path = Path(folder)
    pointer = path / "last_checkpoint"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else FINAL_WEIGHTS
    for weights in (path / FINAL_WEIGHTS, path / name):
        if weights.is_file():
            return weights
    raise ConfigError(
        f"'{path}' has no {FINAL_WEIGHTS} and no checkpoint: expected the OUTPUT_DIR of a run that has "
        "written one."
    )


def config_of_run(folder: str | Path, weights: str = "", opts: Sequence[Any] = ()) -> CfgNode:
    """Reads the config of a run, with weights of it.

    Args:
        folder: OUTPUT_DIR of the run.
        weights: name of a checkpoint in it; "" is :func:`weights_of_run`.
        opts: changes to the config, as :func:`~regseg_d2.config.files.load_config` takes them.

    Raises:
        ConfigError: it is no folder of a run, or has no weights yet.
    """
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            f"'{folder}' has no config.yaml: expected the OUTPUT_DIR of a run. Weights without a run need "
            "their config beside them: --weights NAME CONFIG FILE of tools/explore.py, or "
            "Predictor.from_file(FILE, CONFIG)."
        )
    file = Path(folder, weights) if weights else weights_of_run(folder)
    return load_config(str(config), [*opts, "MODEL.WEIGHTS", str(file)])
