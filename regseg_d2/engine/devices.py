"""Which device a run is on, and how a model is spread over processes."""

from __future__ import annotations

import logging
import os
from itertools import accumulate

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regseg_d2.common.errors import ConfigError, listed
from regseg_d2.common.parallel import available_cores

logger = logging.getLogger(__name__)


def with_available_device(cfg: CfgNode) -> CfgNode:
    """Returns a copy of the config whose MODEL.DEVICE is there: cpu for cuda on a machine without GPU.

    Detectron2's default is cuda, and the same config shall run on both, so this is a warning and not
    an error.

    Raises:
        ConfigError: it is no GPU, and torch does not know it or does not find it.
    """
    cfg = cfg.clone()
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        _require_device("MODEL.DEVICE", cfg.MODEL.DEVICE)
    elif not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s and torch finds no GPU: running on the CPU.", cfg.MODEL.DEVICE)
        frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        if frozen:
            cfg.freeze()
    return cfg


def with_device(cfg: CfgNode, device: str | torch.device) -> CfgNode:
    """Returns a copy of the config on a device that somebody asks for.

    Args:
        cfg: the config.
        device: as torch takes it, such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ConfigError: torch does not know it, or it is not there.
    """
    _require_device("device", device)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(device)
    return cfg


def _require_device(key: str, device: str | torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"{key} is {str(device)!r}, which cannot be used ({str(error).splitlines()[0]}); expected 'cpu' "
            f"or one of the {torch.cuda.device_count()} GPUs that torch finds, such as 'cuda:0'."
        ) from error


def wrap_model(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wraps a model in DistributedDataParallel where there are several processes.

    Detectron2's ``create_ddp_model`` names a GPU even on a CPU. Buffers are not broadcast: running
    statistics that shall agree come from a synchronised norm, and memories are the same everywhere.

    Args:
        model: the model. One whose ``has_unused_parameters`` is True is taken to have some.
        find_unused_parameters: look in each step for parameters that take part in no loss; see
            :func:`refuse_unused_parameters`.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters or getattr(model, "has_unused_parameters", False),
    )


def refuse_unused_parameters(model: nn.Module) -> None:
    """Refuses a step of several processes whose backward pass left a parameter without a gradient.

    DistributedDataParallel waits for it before it sums up the gradients of its neighbours: the step would be
    wrong, and the next forward pass an error that knows no names.

    Args:
        model: the model, wrapped or not, after a backward pass.

    Raises:
        ConfigError: names the parameters, and what to do.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    has_gradient = {
        name: p.grad is not None for name, p in model.module.named_parameters() if p.requires_grad
    }
    unused = [name for name, there in has_gradient.items() if not there]
    if not unused:
        return
    # The largest modules without any gradient say more than their parameters, one by one.
    used = {part for name, there in has_gradient.items() if there for part in _prefixes(name)}
    places = dict.fromkeys(next(part for part in _prefixes(name) if part not in used) for name in unused)
    raise ConfigError(
        f"{len(unused)} of {len(has_gradient)} parameters take part in no loss, and several processes cannot "
        f"train those: {listed(list(places))}. Leave out what nobody reads, such as a feature in "
        "OUT_FEATURES of the backbone; or set FIND_UNUSED_PARAMETERS True, which looks for them in each step."
    )


def _prefixes(name: str) -> list[str]:
    """``["a", "a.b", "a.b.c"]`` of ``"a.b.c"``."""
    return list(accumulate(name.split("."), "{}.{}".format))


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
    torch.set_num_threads(max(1, available_cores() // comm.get_local_size()))
