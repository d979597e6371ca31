"""A checkpoint of the folded network, and the config that it belongs to."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from detectron2.config import CfgNode
from torch import nn

from regseg_d2.apps.export.formats import METADATA_KEY, ExportError
from regseg_d2.modeling.heads.context_head import ContextHead
from regseg_d2.segmentor.build import build_model

#: How such a file ends.
FOLDED_SUFFIX = ".safetensors"
# What a projection is once its linear convolution is folded.
_FOLDED = {"LinearConvBlock": "ConvBlock", "NormLinear": "Norm"}


def folded_config(cfg: CfgNode, segmentor: nn.Module, weights: Path) -> CfgNode:
    """The config of the network that is left: no regularizers, no linear convolution.

    Args:
        cfg: the config of training.
        segmentor: what ``inference_model`` gave.
        weights: file of the folded weights; goes into ``MODEL.WEIGHTS``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    head = cfg.MODEL.SEM_SEG_HEAD
    cfg.MODEL.WEIGHTS = str(weights.resolve())
    cfg.MODEL.TIMM.PRETRAINED = ""
    cfg.MODEL.REGULARIZERS.NAMES = []
    head.PROJECTION = _FOLDED.get(head.PROJECTION, head.PROJECTION)
    built = getattr(segmentor, "sem_seg_head", None)
    if isinstance(built, ContextHead) and built.auxiliary is None:
        head.AUX.IN_FEATURE = ""
    return cfg


def write_folded(segmentor: nn.Module, cfg: CfgNode, path: Path, metadata: str) -> None:
    """Writes the weights of a folded network.

    Args:
        segmentor: what ``inference_model`` gave.
        cfg: what :func:`folded_config` gave.
        path: the file, ``.safetensors``.
        metadata: goes into it.

    Raises:
        ExportError: the network has weights that the config has no place for.
    """
    state, wanted = segmentor.state_dict(), build_model(cfg).state_dict()
    others = sorted(state.keys() ^ wanted.keys())
    if others:
        head = cfg.MODEL.SEM_SEG_HEAD
        raise ExportError(
            f"The folded network differs from MODEL.SEM_SEG_HEAD.PROJECTION {head.PROJECTION!r} in "
            f"{', '.join(others[:3])}: a linear convolution goes into a block with a batch norm or none, and "
            f"NORM is {head.NORM!r}. Export to another format."
        )
    tensors = {key: value.contiguous().clone() for key, value in state.items()}
    safetensors.torch.save_file(tensors, path, {METADATA_KEY: metadata})


def read_folded_metadata(path: Path) -> str:
    """Returns the metadata of such a file."""
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()[METADATA_KEY]
