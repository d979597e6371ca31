"""One optimizer step: forward and backward passes, the check for NaN, clipping, the update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine.devices import refuse_unused_parameters
from regseg_d2.engine.optim import GradientClipper
from regseg_d2.state.undoable import UndoableState

logger = logging.getLogger(__name__)

# Batches of a step that was skipped, the losses of each, and whether a loss of any process is not finite.
OnNotFinite = Callable[[Sequence[list[dict[str, Any]]], Sequence[Mapping[str, Tensor]], bool], None]

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class NonFiniteLossError(UserError, FloatingPointError):
    """Too many steps in a row had losses or gradients that are not finite."""


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        losses: every loss, averaged over the passes of the step and over all processes; they are
            weighted, so that their sum is the loss that was minimised.
        skipped: whether the update was left out because something was not finite.
        shared: what the processes told each other, added up; see :meth:`TrainingStep.run`.
    """

    losses: dict[str, float]
    skipped: bool
    shared: tuple[float, ...] = ()

    @property
    def total_loss(self) -> float:
        """The sum of all losses."""
        return sum(self.losses.values())


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Returns the type that SOLVER.AMP asks autocast for, or None where it is off.

    Raises:
        ConfigError: the name is unknown, or fp16 is asked for on a CPU.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    if amp.DTYPE not in AMP_DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE is '{amp.DTYPE}'; expected fp16 or bf16.")
    if amp.DTYPE == "fp16" and torch.device(cfg.MODEL.DEVICE).type != "cuda":
        raise ConfigError(
            f"SOLVER.AMP.DTYPE is fp16 and the model runs on '{cfg.MODEL.DEVICE}': fp16 needs a GPU. "
            "Set SOLVER.AMP.DTYPE bf16, or SOLVER.AMP.ENABLED False."
        )
    return AMP_DTYPES[amp.DTYPE]


class TrainingStep:
    """Runs optimizer steps, and leaves out those that are not finite.

    A step whose losses, gradients or buffers are not finite on *any* process is skipped on *all* of them: the
    weights, the optimizer and every buffer of the model (running statistics, memories) stay what they
    were before the step. More than ``max_nan_steps`` such steps in a row end the run. With fp16 the
    loss scaler provokes overflows of the gradients while it searches for its scale; those are skipped
    and not counted as long as the losses are finite and the scale can still shrink.

    Losses and the verdict reach the host in one transfer, the only one of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accum_steps: int = 1,
        autocast_dtype: torch.dtype | None = None,
        clipper: GradientClipper | None = None,
        max_nan_steps: int = 10,
        on_not_finite: OnNotFinite | None = None,
    ) -> None:
        """Prepares steps of a model.

        Args:
            model: returns a dict of scalar losses in training; wrapped in DistributedDataParallel or not.
            optimizer: the optimizer of its parameters.
            accum_steps: forward and backward passes in one step.
            autocast_dtype: type of mixed precision, or None. float16 comes with a loss scaler.
            clipper: changes the gradients before the update; see ``optim.build_gradient_clipper``.
            max_nan_steps: steps in a row that may be skipped.
            on_not_finite: called with what a skipped step was made of, on every process.

        Raises:
            ConfigError: accum_steps is not positive.
        """
        if accum_steps < 1:
            raise ConfigError(f"SOLVER.ACCUM_STEPS is {accum_steps}; expected 1 or more.")
        self.model = model
        self.optimizer = optimizer
        self.accum_steps = accum_steps
        self.autocast_dtype = autocast_dtype
        self.clipper = clipper
        self.max_nan_steps = max_nan_steps
        self.on_not_finite = on_not_finite
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        # The scaler is there without fp16 too, and then does nothing.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast_dtype is torch.float16)
        # What would be too large to copy takes its changes back itself.
        self._undoable = [module for module in model.modules() if isinstance(module, UndoableState)]
        not_copied = {id(buffer) for module in self._undoable for buffer in module.undoable_buffers()}
        # Lists of one type each: torch copies those in few kernels.
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            if id(buffer) not in not_copied:
                by_type.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = [(group, [torch.empty_like(b) for b in group]) for group in by_type.values()]
        # What is infinite from the start is so on purpose.
        self._watched = [
            [buffer for buffer in group if buffer.numel() and bool(buffer.isfinite().all())]
            for group in by_type.values()
            if group[0].is_floating_point()
        ]

    def run(
        self,
        batches: Iterator[list[dict[str, Any]]],
        before_pass: Callable[[int], None] | None = None,
        share: Callable[[], Sequence[float]] | None = None,
    ) -> StepResult:
        """Takes ``accum_steps`` batches and makes one optimizer step of them.

        Args:
            batches: gives the batches of this process.
            before_pass: called with the number of the pass in the step, between taking a batch and
                the forward pass.
            share: called at the end of the passes; gives whole numbers, as many on every process, that
                are added up over the processes in the transfer that there is anyway.

        Raises:
            NonFiniteLossError: this was one skipped step too many.
            ConfigError: parameters take part in no loss, and there are several processes.
        """
        self._save_buffers()
        self.optimizer.zero_grad(set_to_none=True)
        taken: list[list[dict[str, Any]]] = []
        losses: list[dict[str, Tensor]] = []
        for micro_step in range(self.accum_steps):
            taken.append(next(batches))
            if before_pass is not None:
                before_pass(micro_step)
            losses.append(self._forward_backward(taken[-1], last=micro_step == self.accum_steps - 1))
        if any(parameter.grad is None for parameter in self.parameters):
            refuse_unused_parameters(self.model)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        return self._update(taken, losses, share() if share is not None else ())

    def _forward_backward(self, batch: list[dict[str, Any]], *, last: bool) -> dict[str, Tensor]:
        """Adds the gradients of one batch; returns its detached losses, each over accum_steps."""
        with self._gradient_sync(last):
            with torch.autocast(
                self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
            ):
                losses: Mapping[str, Tensor] = self.model(batch)
            scaled = {name: loss / self.accum_steps for name, loss in losses.items()}
            self.scaler.scale(torch.stack(list(scaled.values())).sum()).backward()
        return {name: loss.detach().float() for name, loss in scaled.items()}

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Lets DistributedDataParallel exchange gradients in the last pass of a step alone."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _update(
        self, batches: list[list[dict[str, Any]]], losses: list[dict[str, Tensor]], to_share: Sequence[float]
    ) -> StepResult:
        loss_finite, gradients_finite, mean_losses, shared = self._reduce(losses, to_share)
        skipped = not (loss_finite and gradients_finite)
        if skipped:
            self._restore_buffers()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            if self.clipper is not None:
                self.clipper(self.parameters)
            # Not scaler.step: it would fetch the verdict on the gradients a second time.
            self.optimizer.step()
        searching_scale = False
        if self.scaler.is_enabled():
            searching_scale = skipped and loss_finite and self.scaler.get_scale() > 1.0
            self.scaler.update()
        if skipped:
            if self.on_not_finite is not None and not searching_scale:
                self.on_not_finite(batches, losses, not loss_finite)
            self._count_skipped(searching_scale=searching_scale, losses=mean_losses)
        else:
            self.skipped_in_a_row = 0
        return StepResult(mean_losses, skipped, shared)

    def _reduce(
        self, losses: list[dict[str, Tensor]], to_share: Sequence[float]
    ) -> tuple[bool, bool, dict[str, float], tuple[float, ...]]:
        """Fetches the verdict of all processes, the mean losses and what is shared in one transfer."""
        names = sorted(losses[0])
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=self.device)
        values, *others = (torch.stack([one[name] for name in names]) for one in losses)
        for other in others:
            values = values + other
        # A running variance that overflowed is seen in no loss of this step, and in all later ones.
        forward = torch.stack([values.sum(), *(x.to(values) for x in _largest(self._watched))])
        verdicts = torch.stack([~forward.isfinite().all(), ~norm.to(values.device).isfinite()]).to(
            values.dtype
        )
        # Filled by kernels: a copy of numbers from the host would wait for the device.
        if any(to_share):
            extra = torch.cat([values.new_full((1,), number) for number in to_share])
        else:
            extra = values.new_zeros(len(to_share))
        message = torch.cat([verdicts, values, extra])
        if comm.get_world_size() > 1:
            dist.all_reduce(message)
        bad_loss, bad_gradients, *sums = message.tolist()
        sums, shared = sums[: len(names)], tuple(sums[len(names) :])
        world_size = comm.get_world_size()
        mean_losses = {name: value / world_size for name, value in zip(names, sums, strict=True)}
        return bad_loss == 0, bad_gradients == 0, mean_losses, shared

    def _count_skipped(self, *, searching_scale: bool, losses: dict[str, float]) -> None:
        self.skipped_steps += 1
        if searching_scale:
            return
        self.skipped_in_a_row += 1
        shown = ", ".join(f"{name} = {value:.4g}" for name, value in losses.items())
        if self.skipped_in_a_row > self.max_nan_steps:
            raise NonFiniteLossError(
                f"Losses or gradients were not finite in {self.skipped_in_a_row} steps in a row "
                f"(SOLVER.MAX_NAN_STEPS is {self.max_nan_steps}). Losses of the last: {shown}. Lower "
                "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, switch SOLVER.CLIP_GRADIENTS on, or use bf16 "
                "instead of fp16."
            )
        logger.warning(
            "Skipped this step: losses, gradients or buffers are not finite (%s). %d in a row, %d in all.",
            shown,
            self.skipped_in_a_row,
            self.skipped_steps,
        )

    def is_healthy(self) -> bool:
        """Whether the last step was made, and left weights and buffers finite: worth a checkpoint."""
        return self.skipped_in_a_row == 0 and self.weights_are_finite()

    def weights_are_finite(self) -> bool:
        """Whether weights and buffers are; makes the host wait for the device, so not for every step."""
        weights = [[parameter.detach()] for parameter in self.parameters if parameter.numel()]
        largest = [value.float() for value in _largest([*weights, *self._watched])]
        return bool(torch.stack(largest).isfinite().all())

    def require_progress(self, steps: int) -> None:
        """Refuses a run that learnt nothing, or nothing any more for its second half, or came to nothing.

        Args:
            steps: all steps of the run, those before a resume among them.

        Raises:
            NonFiniteLossError: all were skipped, or at least half of them in a row at the end; or weights
                are not finite.
        """
        if self.skipped_steps < steps and 2 * self.skipped_in_a_row < steps:
            if self.weights_are_finite():
                return
            raise NonFiniteLossError(
                "Weights or buffers are not finite after the last step: no final model is written. Lower "
                "SOLVER.BASE_LR, or lengthen SOLVER.WARMUP_ITERS."
            )
        raise NonFiniteLossError(
            f"{self.skipped_steps} of {steps} steps were skipped, the last {self.skipped_in_a_row} in a row, "
            "since losses or gradients were not finite: no final model is written. Lower SOLVER.BASE_LR, "
            "lengthen SOLVER.WARMUP_ITERS, or set SOLVER.AMP.ENABLED False; the batches are in nan_batches "
            "in the run's folder."
        )

    @torch.no_grad()
    def _save_buffers(self) -> None:
        for module in self._undoable:
            module.begin_step()
        for buffers, saved in self._buffers:
            torch._foreach_copy_(saved, buffers)

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for module in self._undoable:
            module.undo_step()
        for buffers, saved in self._buffers:
            torch._foreach_copy_(buffers, saved)

    def state_dict(self) -> dict[str, Any]:
        """Returns the counters and the state of the loss scaler."""
        return {
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.skipped_steps = int(state["skipped_steps"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        # Empty where the run was without fp16: then there is nothing to take over.
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))


def _largest(groups: Sequence[list[Tensor]]) -> list[Tensor]:
    """The largest absolute value in each list of tensors of one type; NaN comes through."""
    return [torch.stack(torch._foreach_norm(group, ord=float("inf"))).max() for group in groups if group]
