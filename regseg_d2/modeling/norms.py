"""The normalisation layers that ``"auto"`` stands for, and changing those of a built network."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.layers import get_norm as get_norm_of_detectron2
from detectron2.utils import comm
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, check_key

NORMS = ("auto", "BN", "SyncBN", "naiveSyncBN", "FrozenBN", "GN")
# Groups of Detectron2's group norm.
GROUPS = 32


def auto_norm(device: str, world_size: int) -> str:
    """Names the batch norm for ``cfg.MODEL.DEVICE`` and a number of processes: BN, SyncBN or naiveSyncBN.

    ``nn.SyncBatchNorm`` refuses CPU tensors in training, so several CPU processes take Detectron2's
    ``naiveSyncBN``, which the segmentor then makes exact (``process_batch_norm.py``).
    """
    if world_size == 1:
        return "BN"
    return "SyncBN" if device.startswith("cuda") and torch.cuda.is_available() else "naiveSyncBN"


def resolve_auto_norm(cfg: CfgNode) -> CfgNode:
    """Returns a copy of ``cfg`` in which every NORM key names a layer instead of ``"auto"``.

    Raises:
        ConfigError: if ``MODEL.NORM`` is unknown.
    """
    check_key("MODEL.NORM", cfg.MODEL.NORM, cfg.MODEL.NORM in NORMS, f"one of {NORMS}")
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.NORM == "auto":
        cfg.MODEL.NORM = auto_norm(cfg.MODEL.DEVICE, comm.get_world_size())
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.SEM_SEG_HEAD):
        if node.NORM == "auto":
            node.NORM = cfg.MODEL.NORM
    cfg.freeze()
    return cfg


def get_norm(norm: str, channels: int) -> nn.Module | None:
    """Makes a norm layer of a head as Detectron2 does.

    Raises:
        ConfigError: group norm, whose groups are 32, of a number of channels that they cannot share.
    """
    if norm == "GN" and channels % GROUPS:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NORM is 'GN', whose {GROUPS} groups need a multiple of {GROUPS} channels, "
            f"and a layer has {channels}; change that number of channels, or the norm"
        )
    return get_norm_of_detectron2(norm, channels)


class WithActivation(nn.Module):
    """Gives a batch norm the dropout and activation of timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalises, drops and activates ``(N, C, H, W)``."""
        return self.act(self.drop(super().forward(input)))


class NaiveSyncBatchNormAct(WithActivation, NaiveSyncBatchNorm):
    """Detectron2's ``naiveSyncBN`` with dropout and activation."""


class FrozenBatchNormAct(nn.Sequential):
    """Detectron2's frozen batch norm, and the dropout and activation of timm's ``BatchNormAct2d``."""


def convert_batch_norm(module: nn.Module, norm: str) -> nn.Module:
    """Replaces the batch norms of a built network; names, weights and statistics stay.

    Args:
        module: a network with ``nn.BatchNorm2d`` or timm's ``BatchNormAct2d`` layers.
        norm: ``"BN"``, ``"SyncBN"``, ``"naiveSyncBN"`` or ``"FrozenBN"``.

    Returns:
        The network, or its replacement if it was a norm itself.

    Raises:
        ConfigError: if a network cannot be given that norm after it has been built.
    """
    if norm == "BN":
        return module
    if norm not in ("SyncBN", "naiveSyncBN", "FrozenBN"):
        raise ConfigError(
            f"MODEL.NORM is {norm!r}, which cannot replace the batch norms of a timm backbone; "
            "expected auto, BN, SyncBN, naiveSyncBN or FrozenBN"
        )
    if isinstance(module, nn.BatchNorm2d):
        return _convert_one(module, norm)
    for name, child in module.named_children():
        module.add_module(name, convert_batch_norm(child, norm))
    return module


def _convert_one(old: nn.BatchNorm2d, norm: str) -> nn.Module:
    has_act = isinstance(old, BatchNormAct2d)
    act = [old.get_submodule("drop"), old.get_submodule("act")] if has_act else []
    if norm == "FrozenBN":
        frozen = FrozenBatchNorm2d(old.num_features, old.eps)
        frozen.load_state_dict(old.state_dict(), strict=False)
        return FrozenBatchNormAct(frozen, *act) if has_act else frozen
    plain, with_act = {
        "SyncBN": (nn.SyncBatchNorm, SyncBatchNormAct),
        "naiveSyncBN": (NaiveSyncBatchNorm, NaiveSyncBatchNormAct),
    }[norm]
    new = (with_act if has_act else plain)(old.num_features, eps=old.eps, momentum=old.momentum)
    new.load_state_dict(old.state_dict())
    if has_act:
        new.drop, new.act = act
    return new
