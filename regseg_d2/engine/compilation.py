"""``torch.compile`` of the parts of a network between which regularizers listen."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.regularizers.taps import parse_tap
from regseg_d2.state import memories_of

logger = logging.getLogger(__name__)

OFF = "or set SOLVER.COMPILE.ENABLED False"


def compile_parts(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Compiles the training forward of backbone and head, in their places, as ``SOLVER.COMPILE`` says.

    The parts are the largest modules of them that no tap looks into: taps, losses, regularizers and memories
    stay outside of the graphs. Names, parameters, hooks and evaluation are as they were. It happens when a
    part is first called.

    Args:
        cfg: the config.
        model: the model, not wrapped.

    Returns:
        The paths of the parts.

    Raises:
        ConfigError: the backend is unknown, or cannot work here, or the model has no backbone.
    """
    backend = cfg.SOLVER.COMPILE.BACKEND
    _require_backend(backend, torch.device(cfg.MODEL.DEVICE).type)
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ConfigError(
            f"SOLVER.COMPILE.ENABLED is True, and {type(model).__name__} has no 'backbone': backbone and "
            f"'sem_seg_head' are what is compiled. Choose another MODEL.META_ARCHITECTURE, {OFF}."
        )
    paths = list(_parts(model))
    # The graphs of all layers of one class count as one function's.
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, len(paths) + 8)
    # With the random numbers of eager mode: dropout is the same in both.
    options = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    for path in paths:
        part = model.get_submodule(path)
        part.forward = CompiledForward(part, {"backend": backend, **options})
    logger.info(
        "Compiling %d parts (%s) when they are first called: %s.", len(paths), backend, ", ".join(paths)
    )
    return paths


class CompiledForward:
    """The forward of a module: compiled in training, as it was in evaluation.

    A deep copy belongs to the copied module.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        self._module, self._options = module, options
        self._eager: Callable[..., Any] = type(module).forward.__get__(module)
        self._compiled = torch.compile(self._eager, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module."""
        return (self._compiled if self._module.training else self._eager)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledForward:
        return CompiledForward(memo[id(self._module)], self._options)


def _parts(model: nn.Module) -> Iterator[str]:
    """Paths of what is compiled: of the backbone, and below the head, whose own forward computes losses."""
    regularizers = getattr(model, "regularizers", None)
    taps = [parse_tap(tap, "taps").path for tap in getattr(regularizers, "taps", ())]
    watched = [*taps, getattr(model, "reads_images", "backbone")]
    yield from _largest(model.get_submodule("backbone"), "backbone", watched)
    head = getattr(model, "sem_seg_head", None)
    for name, part in head.named_children() if isinstance(head, nn.Module) else ():
        yield from _largest(part, f"sem_seg_head.{name}", watched)


def _largest(module: nn.Module, path: str, watched: list[str]) -> Iterator[str]:
    if next(module.parameters(), None) is None:
        return
    is_looked_into = any(tap.startswith(f"{path}.") for tap in watched) or memories_of(module)
    if not is_looked_into and _has_forward(module):
        yield path
        return
    for name, part in module.named_children():
        yield from _largest(part, f"{path}.{name}", watched)


def _has_forward(module: nn.Module) -> bool:
    """Whether a module can be called, and its class says how."""
    return type(module).forward is not nn.Module.forward and "forward" not in vars(module)


def _require_backend(backend: str, device: str) -> None:
    known = torch._dynamo.list_backends(exclude_tags=None)
    if backend not in known:
        raise ConfigError(
            f"SOLVER.COMPILE.BACKEND: unknown name {backend!r}{did_you_mean(backend, known)}; known are "
            f"{known}."
        )
    if backend != "inductor":
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"SOLVER.COMPILE.BACKEND inductor needs a C++ compiler, and '{compiler}' is not there. Install "
            f"g++ (apt install g++), name one that is there in the variable CXX, {OFF}."
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "SOLVER.COMPILE.BACKEND inductor needs Triton on a GPU, and it is not there: pip install triton, "
            f"{OFF}."
        )
