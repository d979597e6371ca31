"""What a run has in a checkpoint besides its model, and how it is taken over."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from regseg_d2.common.errors import CheckpointError, ConfigError, UserError
from regseg_d2.data.bad_files import BadFileLedger
from regseg_d2.engine.step import TrainingStep

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """All that a resumed run needs besides its model and the states of its hooks.

    The SEED of ``cfg`` becomes that of the run which is resumed.
    """

    cfg: CfgNode
    seed_is_given: bool
    optimizer: torch.optim.Optimizer
    training_step: TrainingStep
    bad_files: BadFileLedger
    completed_steps: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        return {
            "completed_steps": self.completed_steps,
            "seed": self.cfg.SEED,
            "batches": _batches(self.cfg),
            "optimizer": self.optimizer.state_dict(),
            "training_step": self.training_step.state_dict(),
            "bad_files": self.bad_files.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; to be called within :func:`errors_of_the_file`.

        Raises:
            CheckpointError: the optimizer, its groups or its parameters are other ones.
            ConfigError: SEED is another one than the run's, or the run is past MAX_ITER.
        """
        steps, max_iter = int(state["completed_steps"]), self.cfg.SOLVER.MAX_ITER
        if steps < 0:
            raise ValueError(f"completed_steps is {steps}")
        if steps > max_iter:
            raise ConfigError(
                f"The checkpoint is from step {steps}, and SOLVER.MAX_ITER is {max_iter}: raise it, or "
                "start a new run in another OUTPUT_DIR."
            )
        self._take_over_seed(int(state["seed"]))
        if "batches" in state:  # files of earlier versions do not say it
            _warn_about_other_batches(_batches(self.cfg), state["batches"], steps)
        try:
            _check_optimizer_state(self.optimizer, state["optimizer"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"The checkpoint's optimizer does not fit ({error}): resume with the SOLVER settings of the "
                "run that wrote it."
            ) from error
        self.training_step.load_state_dict(state["training_step"])
        self.bad_files.load_state_dict(state.get("bad_files", {}))
        self.completed_steps = steps

    def _take_over_seed(self, saved: int) -> None:
        if self.seed_is_given and saved != self.cfg.SEED:
            raise ConfigError(
                f"SEED is {self.cfg.SEED} and the run to resume has {saved}: a run keeps its seed. Set SEED "
                f"{saved}, or start a new run in another OUTPUT_DIR."
            )
        self.cfg.defrost()
        self.cfg.SEED = saved
        self.cfg.freeze()


@contextmanager
def errors_of_the_file() -> Iterator[None]:
    """Around taking a state over from a file: whatever is wrong with it is wrong in the file.

    Raises:
        CheckpointError: something is missing, or is not what it is called.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the state of the run in it cannot be used ({type(error).__name__}: {error}): the file is "
            "damaged or of another version. Start from its weights: MODEL.WEIGHTS with this file, without "
            "--resume."
        ) from error


def _batches(cfg: CfgNode) -> dict[str, int]:
    """What a step's batch is made of."""
    return {
        "processes": comm.get_world_size(),
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.ACCUM_STEPS": cfg.SOLVER.ACCUM_STEPS,
    }


def _warn_about_other_batches(now: Mapping[str, int], saved: Mapping[str, Any], steps: int) -> None:
    before = {name: int(saved[name]) for name in now}
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if before[name] != now[name]]
    if not changed:
        return
    was, images = before["SOLVER.IMS_PER_BATCH"], now["SOLVER.IMS_PER_BATCH"]
    samples = "Each step sees the samples that it would have seen"
    if images != was:
        what = "are left out" if images > was else "are seen again"
        samples = (
            f"Step {steps} begins with sample {steps * images} of the order that SEED gives (step x "
            f"IMS_PER_BATCH), not with {steps * was}: those in between {what}. The learning rates follow the "
            "schedule at the same iteration: it counts steps, not images"
        )
    logger.warning(
        "THE RUN GOES ON WITH OTHER BATCHES (%s). %s. The end is not that of the uninterrupted run, bit for "
        "bit: sums have another order, and batch norm and dropout see another share of a step.",
        ", ".join(changed),
        samples,
    )


def _check_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Compares what a step would read with the parameters: torch does not, and its kernels read beyond.

    Raises:
        ValueError: a tensor has another shape or kind than its parameter, a setting is no number.
    """
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(groups) != len(optimizer.param_groups) or len(numbers) != len(parameters):
        raise ValueError(
            f"{len(groups)} groups of {len(numbers)} parameters; there are {len(optimizer.param_groups)} of "
            f"{len(parameters)}"
        )
    for group in groups:
        for key, value in group.items():
            if isinstance(value, (str, bytes, Mapping, torch.Tensor)):
                raise ValueError(f"{key} is {value!r:.50}")
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state["state"].get(number, {}).items():
            if not isinstance(value, torch.Tensor):
                if value is not None and not isinstance(value, (int, float)):
                    raise ValueError(f"{key} of parameter {number} is {value!r:.50}")
            elif value.ndim and value.shape != parameter.shape or not value.is_floating_point():
                raise ValueError(
                    f"{key} of parameter {number} is {value.dtype} {tuple(value.shape)}, the parameter "
                    f"{parameter.dtype} {tuple(parameter.shape)}"
                )
