"""Puts measured class weights into the losses of a model."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.data.class_weights import measured_class_weights
from regseg_d2.modeling.losses import SegmentationLoss


def apply_class_weighting(cfg: CfgNode, model: nn.Module) -> None:
    """Gives the losses of a model the weights that ``MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING`` names, if any.

    The config keeps the name: evaluating a checkpoint needs no frequencies. A collective call.

    Raises:
        ConfigError: the head has no loss that takes weights, or see ``measured_class_weights``.
        DatasetError: the labels cannot be counted.
    """
    weights = measured_class_weights(cfg)
    if weights is None:
        return
    losses = [module for module in model.modules() if isinstance(module, SegmentationLoss)]
    if not losses:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING is {cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING}, but the loss "
            f"of {cfg.MODEL.SEM_SEG_HEAD.NAME} takes no class weights; ContextHead's does."
        )
    device = next(model.parameters()).device
    for loss in losses:
        loss.set_class_weights(weights, device)
