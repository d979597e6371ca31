"""Optimizers, parameter groups, gradient clipping and learning rate schedules, from the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.engine.devices import backbone_prefix
from regseg_d2.engine.layer_decay import layer_scales

GradientClipper = Callable[[Sequence[nn.Parameter]], None]

logger = logging.getLogger(__name__)

SCHEDULES = ("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Groups the trainable parameters of a model by learning rate and weight decay.

    - Parameters of the backbone learn with BASE_LR x BACKBONE_MULTIPLIER, and where LAYER_DECAY is not 1
      with that x the factor of their layer (``layer_decay.py``); all others (those of the regularizers
      too) with BASE_LR x HEAD_MULTIPLIER. Biases learn with that x BIAS_LR_FACTOR.
    - Parameters whose name fits a pattern of NO_DECAY do not decay. Of the others, norm layers of torch
      and classes derived from them (timm's ``BatchNormAct2d``, Detectron2's ``NaiveSyncBatchNorm``) decay
      with WEIGHT_DECAY_NORM, all else with WEIGHT_DECAY; biases, where WEIGHT_DECAY_BIAS is not None, with
      that.

    A parameter that two modules share is in one group, once.

    Args:
        cfg: the config.
        model: the model, not yet wrapped for several processes.

    Raises:
        ConfigError: a key is out of its range, the backbone does not tell its layers, or the model has
            nothing to train.
    """
    solver, backbone = cfg.SOLVER, backbone_prefix(model)
    _check_rates(solver)
    scales: dict[str, float] = {}
    if solver.LAYER_DECAY != 1:
        scales = layer_scales(model.get_submodule(backbone[:-1]), solver.LAYER_DECAY, solver.LAYER_DECAY_UNIT)

    def lr_factor(name: str) -> float:
        if name.startswith(backbone):
            factor = solver.BACKBONE_MULTIPLIER * scales.get(name.removeprefix(backbone), 1.0)
        else:
            factor = solver.HEAD_MULTIPLIER
        return factor * (solver.BIAS_LR_FACTOR if name.endswith(".bias") else 1.0)

    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        # Not bias_lr_factor: Detectron2's would undo the backbone's factor on its biases.
        lr_factor_func=lr_factor,
    )
    if not groups:
        raise ConfigError("The model has no parameter that can be trained: everything in it is frozen.")
    not_decaying = _parameters_without_decay(model, solver.NO_DECAY)
    # The later of two entries for a parameter changes the earlier, and equal settings become one group.
    return reduce_param_groups([*groups, {"params": not_decaying, "weight_decay": 0.0}])


def _check_rates(solver: CfgNode) -> None:
    for key in ("BASE_LR", "HEAD_MULTIPLIER"):
        if not 0.0 < solver[key] < math.inf:
            raise ConfigError(f"SOLVER.{key} is {solver[key]}; expected a number above 0, and finite.")
    for key in ("BACKBONE_MULTIPLIER", "BIAS_LR_FACTOR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM"):
        if not 0.0 <= solver[key] < math.inf:
            raise ConfigError(f"SOLVER.{key} is {solver[key]}; expected 0 or more, and finite.")
    check_key("SOLVER.MOMENTUM", solver.MOMENTUM, 0.0 <= solver.MOMENTUM < 1.0, "0 or more, and less than 1")


def _parameters_without_decay(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    """Trainable parameters that have a name with a part that fits one of the patterns."""
    if any(not isinstance(pattern, str) or not pattern for pattern in patterns):
        raise ConfigError(
            f"SOLVER.NO_DECAY is {list(patterns)}; expected parts of the names of parameters, such as [gamma]"
        )
    # A shared parameter has several names.
    names = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    found: dict[nn.Parameter, None] = {}
    for pattern in patterns:
        fitting = [parameter for name, parameter in names if fnmatchcase(name, f"*{pattern}*")]
        if not fitting:
            logger.warning("SOLVER.NO_DECAY: no trainable parameter has a name with %r in it.", pattern)
        found.update(dict.fromkeys(fitting))
    return list(found)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds SOLVER.OPTIMIZER (SGD, Adam or AdamW) over :func:`parameter_groups`.

    Raises:
        ConfigError: the name is unknown, or there is nothing to train.
    """
    solver = cfg.SOLVER
    # Fused: one pass over the memory in place of many.
    common = {"lr": solver.BASE_LR, "fused": True}
    builders: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "SGD": lambda groups: torch.optim.SGD(
            groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common
        ),
        "Adam": lambda groups: torch.optim.Adam(groups, betas=tuple(solver.BETAS), **common),
        "AdamW": lambda groups: torch.optim.AdamW(groups, betas=tuple(solver.BETAS), **common),
    }
    if solver.OPTIMIZER not in builders:
        raise ConfigError(
            f"SOLVER.OPTIMIZER is '{solver.OPTIMIZER}'; expected one of {', '.join(builders)}."
            f"{did_you_mean(solver.OPTIMIZER, builders)}"
        )
    optimizer = builders[solver.OPTIMIZER](parameter_groups(cfg, model))
    optimizer.register_load_state_dict_post_hook(_lay_out_like_parameters)
    return optimizer


@torch.no_grad()
def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Gives loaded state the strides of its parameters, which fused updates take for granted.

    A checkpoint has those of the run that wrote it, and MODEL.CHANNELS_LAST may have changed since.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper | None:
    """Returns what SOLVER.CLIP_GRADIENTS asks for, or None where it is off.

    CLIP_TYPE ``value`` and ``norm`` (of each parameter by itself) are Detectron2's; ``full_model``
    bounds the norm of all gradients together. Detectron2 clips inside a derived optimizer class; here
    it is a function, called after the gradients were unscaled.

    Raises:
        ConfigError: CLIP_TYPE is unknown, or CLIP_VALUE would stop or turn around all gradients.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    check_key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", clip.CLIP_VALUE, clip.CLIP_VALUE > 0, "a number above 0")
    check_key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", clip.NORM_TYPE, clip.NORM_TYPE > 0, "a number above 0")

    def by_value(parameters: Sequence[nn.Parameter]) -> None:
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)

    def by_norm(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    def by_norm_of_all(parameters: Sequence[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    clippers = {"value": by_value, "norm": by_norm, "full_model": by_norm_of_all}
    if clip.CLIP_TYPE not in clippers:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{clip.CLIP_TYPE}'; expected one of {', '.join(clippers)}."
        )
    return clippers[clip.CLIP_TYPE]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Builds SOLVER.LR_SCHEDULER_NAME: DeepLab's poly schedule or one of Detectron2's.

    ``WarmupPolyLR`` (Chen et al., DeepLab, TPAMI 2018, section 4.1.1): lr at iteration t is
    BASE_LR x (1 - t / MAX_ITER) ^ POLY_LR_POWER, times the warm-up factor.

    Raises:
        ConfigError: the name is unknown, or there is no step to make.
    """
    solver = cfg.SOLVER
    check_key("SOLVER.MAX_ITER", solver.MAX_ITER, solver.MAX_ITER >= 1, "1 or more")
    check_key("SOLVER.WARMUP_ITERS", solver.WARMUP_ITERS, solver.WARMUP_ITERS >= 0, "0 (none) or more")
    for key in ("WARMUP_FACTOR", "POLY_LR_POWER"):
        check_key(f"SOLVER.{key}", solver[key], 0.0 <= solver[key] < math.inf, "0 or more, and finite")
    if solver.LR_SCHEDULER_NAME not in SCHEDULES:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME is '{solver.LR_SCHEDULER_NAME}'; expected one of "
            f"{', '.join(SCHEDULES)}.{did_you_mean(solver.LR_SCHEDULER_NAME, SCHEDULES)}"
        )
    if solver.WARMUP_METHOD not in ("linear", "constant"):
        raise ConfigError(f"SOLVER.WARMUP_METHOD is '{solver.WARMUP_METHOD}'; expected linear or constant.")
    return build_deeplab_lr_scheduler(cfg, optimizer)
