"""The weights that a training starts from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from regseg_d2.common.errors import UserError
from regseg_d2.modeling.backbones.pretrained import pretrained_file
from regseg_d2.modeling.backbones.timm import TimmBackbone
from regseg_d2.weights import timm_names
from regseg_d2.weights.imagenet import imagenet_weights
from regseg_d2.weights.names import AUTO, local_file
from regseg_d2.weights.published import image_warning

logger = logging.getLogger(__name__)

T = TypeVar("T")


def weights_file(name: str, cfg: CfgNode | None) -> str:
    """Returns the file that a value of MODEL.WEIGHTS stands for, downloaded where need be.

    Args:
        name: a file, or a name as in docs/weights.md.
        cfg: config of the model, which ``auto`` needs.

    Raises:
        UserError: there are no weights of that name, or they cannot be downloaded; on every process alike.
    """
    return _same_outcome(
        lambda: local_file(imagenet_weights(cfg) if name == AUTO and cfg else name, "MODEL.WEIGHTS")
    )


def load_timm_weights(model: nn.Module, cfg: CfgNode) -> bool:
    """Loads MODEL.TIMM.PRETRAINED into the backbone, and says whether there was something to load.

    Raises:
        UserError: the weights cannot be found, downloaded or read, or are of another network.
    """
    source = cfg.MODEL.TIMM.PRETRAINED
    backbone = timm_backbone(model)
    if not source or backbone is None:
        return False
    path = _same_outcome(lambda: pretrained_file(source, backbone.timm_name))
    backbone.load_pretrained(path, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    if warning := image_warning(timm_names.SOURCE, timm_names.image_values({}, cfg), cfg):
        logger.warning(warning)
    return True


def offered_weights(model: nn.Module, cfg: CfgNode) -> tuple[str, dict[str, Tensor]] | None:
    """Reads the weights that a meta-architecture finds itself: its ``initial_weights``, docs/extending.md.

    Returns:
        What they are called, and the tensors under the model's names; None where it offers none for this
        config.

    Raises:
        UserError: they cannot be had, or read; on every process alike.
    """
    read = getattr(model, "initial_weights", None)
    return None if read is None else _same_outcome(lambda: read(cfg))


def timm_backbone(model: nn.Module) -> TimmBackbone | None:
    """The timm network of a model, or None where its backbone is another."""
    return next((module for module in model.modules() if isinstance(module, TimmBackbone)), None)


def _same_outcome(find: Callable[[], T]) -> T:
    """Returns what is found, or raises on every process alike what went wrong on one of them."""
    found, error = None, None
    try:
        found = find()
    except UserError as raised:
        error = raised
    for other in comm.all_gather(error):
        if other is not None:
            raise other
    return cast(T, found)
