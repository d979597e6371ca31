"""The exponential moving average of a model's weights, beside the weights that are trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regseg_d2.common.errors import CheckpointError, check_key
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.devices import unwrap_model
from regseg_d2.segmentor.export import without_regularizers
from regseg_d2.state import memories_of

logger = logging.getLogger(__name__)

#: Folder of the average in that of its run, and how the names of its scores begin.
FOLDER = "ema"


class WeightAverage(HookBase):
    """Averages weights and running statistics after each step that was made, as ``SOLVER.EMA`` says.

    It begins with the weights that training begins with; then ``average = decay * average + (1 - decay) *
    weights`` after each step. Steps that are skipped leave it as it is. Regularizers are no part of it, and
    what has no mean is taken over as it is: whole numbers, and memories (``state/``). Every process has the
    same.

    Attributes:
        cfg: the config with the folder of the average.
        model: the network with the averaged weights, without regularizers, in evaluation mode.
        checkpointer: writes them into ``<OUTPUT_DIR>/ema``.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Copies the model.

        Args:
            cfg: the config.
            model: the model that is trained, wrapped or not, before it is compiled.

        Raises:
            ConfigError: the decay is not between 0 and 1.
        """
        decay = cfg.SOLVER.EMA.DECAY
        check_key("SOLVER.EMA.DECAY", decay, 0 < decay < 1, "a number between 0 and 1, such as 0.999")
        self._trained = without_regularizers(unwrap_model(model))
        self._average = AveragedModel(
            self._trained, multi_avg_fn=partial(_move, get_ema_multi_avg_fn(decay)), use_buffers=True
        )
        self.model = self._average.module.eval()
        # Rows that are written one by one have no mean.
        memories = zip(memories_of(self.model), memories_of(self._trained), strict=True)
        self._memories = [
            pair for average, own in memories for pair in zip(average.buffers(), own.buffers(), strict=True)
        ]
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / FOLDER)
        self.cfg.TEST.NUM_IMAGES_SHOWN = 0  # TensorBoard shows those of the weights
        self.cfg.freeze()
        self.checkpointer = SafeCheckpointer(self.model, self.cfg.OUTPUT_DIR)
        self._skipped_steps = 0

    def before_train(self) -> None:
        """Begins with the weights that are there, unless the run that is resumed had an average."""
        if self._average.n_averaged == 0:
            if self.trainer.start_iter > 0:
                logger.warning(
                    "SOLVER.EMA is on, and the run that is resumed had no average of its weights: it begins "
                    "with those after step %d.",
                    self.trainer.start_iter,
                )
            self._update()

    def before_step(self) -> None:
        """Remembers how many steps were skipped."""
        self._skipped_steps = self.trainer.training_step.skipped_steps

    def after_step(self) -> None:
        """Moves the average, unless the step was skipped."""
        if self.trainer.training_step.skipped_steps == self._skipped_steps:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        self._average.update_parameters(self._trained)
        for average, trained in self._memories:
            average.copy_(trained)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averaged weights, and how often they were moved."""
        return {"num_averaged": int(self._average.n_averaged), "weights": dict(self.model.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: the weights are of another network.
        """
        weights, own = dict(state_dict["weights"]), self.model.state_dict()
        other = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
        other += [key for key in weights if key not in own]
        if other:
            raise CheckpointError(
                f"the average of its weights (SOLVER.EMA) does not fit the network: {', '.join(other[:5])}. "
                "Resume with the config of the run that wrote it."
            )
        self.model.load_state_dict(weights)
        self._average.n_averaged.fill_(int(state_dict["num_averaged"]))


def _move(
    move: Callable[..., None],
    averages: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_averaged: Tensor | int,
) -> None:
    """What ``AveragedModel`` does with tensors of one type: torch's average, where numbers have a mean."""
    if averages[0].is_floating_point():
        move(averages, weights, num_averaged)
    else:
        torch._foreach_copy_(list(averages), list(weights))
