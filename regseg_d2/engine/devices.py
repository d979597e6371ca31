"""Which device a run is on, and how a model is spread over processes."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)


def with_available_device(cfg: CfgNode) -> CfgNode:
    """Returns a copy of the config whose MODEL.DEVICE is there: cpu for cuda on a machine without GPU.

    Detectron2's default is cuda, and the same config shall run on both, so this is a warning and not
    an error.
    """
    cfg = cfg.clone()
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s and torch finds no GPU: running on the CPU.", cfg.MODEL.DEVICE)
        frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        if frozen:
            cfg.freeze()
    return cfg


def wrap_model(model: nn.Module) -> nn.Module:
    """Wraps a model in DistributedDataParallel where there are several processes.

    Detectron2's ``create_ddp_model`` names a GPU even on a CPU. Buffers are not broadcast: running
    statistics that shall agree come from a synchronised norm, and memories are the same everywhere.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        broadcast_buffers=False,
        find_unused_parameters=getattr(model, "has_unused_parameters", False),
    )


def unwrap_model(model: nn.Module) -> nn.Module:
    """Returns the model inside of DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def backbone_prefix(model: nn.Module) -> str:
    """How the names of the backbone's tensors begin."""
    return getattr(unwrap_model(model), "backbone_prefix", "backbone.")


@torch.no_grad()
def synchronize_buffers(model: nn.Module) -> None:
    """Gives every process the buffers of the main one, whose checkpoint is what others will load.

    Without it, plain batch norm would let each process evaluate with running statistics of its own.
    """
    if comm.get_world_size() == 1:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def limit_cpu_threads() -> None:
    """Shares the CPU cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise."""
    if comm.get_world_size() == 1 or torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // comm.get_local_size()))
