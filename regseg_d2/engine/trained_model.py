"""From a config and a checkpoint to a model that is ready to evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

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
