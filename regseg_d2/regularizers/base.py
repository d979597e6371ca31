"""The contract of a regularizer, and the registry."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.common.registry import Registry
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import all_reduce_sum_constant
from regseg_d2.common.errors import ConfigError
from regseg_d2.ops.precision import loss_precision
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.state.memory_bank import MemoryBank

logger = logging.getLogger(__name__)

REGULARIZER = Registry("REGULARIZER")
REGULARIZER.__doc__ = """
Training-only losses on features. A class is called with ``(cfg, network)``: the config and the module
that tap paths start from.
"""

WARMUP_METHODS = ("constant", "linear")


class Regularizer(nn.Module, abc.ABC):
    """Base of all regularizers.

    A subclass names its loss terms in :attr:`terms`, computes them in :meth:`losses`, and, if it has
    state, changes that in :meth:`update_state`. What every method shares is written here, once:
    float32 arithmetic with autocast off, weights and warm-up, losses that stay attached to the graph,
    and state that moves in training only.

    Args:
        name: how its losses and diagnostics are called.
        feature_tap: name of the tap whose tensor is regularized.
        logits_tap: name of the tap of the logits, for a method that looks at predictions.
        weights: weight of each loss term, by name. A term with weight 0 is not returned.
        warmup_iters: training forwards before the losses have their full weight.
        warmup_method: ``"constant"``: weight 0 before, ``"linear"``: growing from 0.
        until_iter: training forwards after which the losses have weight 0; 0 is never.
        diagnostics_period: training iterations between two records of diagnostics.
        warn_zero_steps: training forwards in a row in which a loss may be exactly zero before a
            warning says so; 0 never warns.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    #: Names of the loss terms; the keys of the result are ``loss_<name>_<term>``.
    terms: tuple[str, ...] = ()

    #: Keys of the method's section that are the size of its banks and the type they are kept in.
    bank_keys: tuple[str, str] = ("BANK_SIZE", "BANK_DTYPE")

    num_forwards: Tensor
    zero_streaks: Tensor

    def __init__(
        self,
        *,
        name: str,
        feature_tap: str,
        logits_tap: str = "",
        weights: Mapping[str, float],
        warmup_iters: int = 0,
        warmup_method: str = "constant",
        until_iter: int = 0,
        diagnostics_period: int = 20,
        warn_zero_steps: int = 200,
    ) -> None:
        super().__init__()
        if warmup_method not in WARMUP_METHODS:
            raise ConfigError(f"{name}: WARMUP_METHOD is {warmup_method!r}; expected one of {WARMUP_METHODS}")
        if until_iter and until_iter <= warmup_iters:
            raise ConfigError(
                f"{name}: UNTIL_ITER is {until_iter} and WARMUP_ITERS {warmup_iters} (counted in forwards): "
                "the losses would end before they begin; expected a larger UNTIL_ITER, or 0 for no end"
            )
        unknown = set(weights) - set(self.terms)
        if unknown or any(weight < 0 for weight in weights.values()):
            raise ConfigError(f"{name}: weights are {dict(weights)}; expected numbers >= 0 for {self.terms}")
        self.name = name
        self.feature_tap = feature_tap
        self.logits_tap = logits_tap
        self.weights = {term: float(weights[term]) for term in self.terms if weights.get(term)}
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.until_iter = until_iter
        self.diagnostics_period = diagnostics_period
        self.warn_zero_steps = warn_zero_steps
        # Where the streak of zeros began that was last warned of, by term.
        self._warned: dict[str, float] = {}
        # A buffer, so that a resumed run stands at the same point of its warm-up.
        self.register_buffer("num_forwards", torch.zeros((), dtype=torch.long))
        self.register_buffer("zero_streaks", torch.zeros(len(self.weights), dtype=torch.long))

    @classmethod
    def check_option(cls, key: str, value: object, is_good: bool, expected: str) -> None:
        """Refuses a value of ``MODEL.REGULARIZERS.<class name>.<key>`` that is not good.

        Raises:
            ConfigError: names the key, the value and what is expected.
        """
        if not is_good:
            raise ConfigError(f"MODEL.REGULARIZERS.{cls.__name__}.{key} is {value!r}; expected {expected}")

    @classmethod
    def check_choice(cls, key: str, value: str, choices: Sequence[str]) -> None:
        """Refuses a value that is none of ``choices``; see :meth:`check_option`."""
        cls.check_option(key, value, value in choices, f"one of {tuple(choices)}")

    @classmethod
    def check_positive(cls, key: str, value: float) -> None:
        """Refuses a value that is not above 0; see :meth:`check_option`."""
        cls.check_option(key, value, value > 0, "a number above 0")

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all taps that :meth:`losses` reads."""
        return (self.feature_tap, self.logits_tap) if self.logits_tap else (self.feature_tap,)

    @property
    def loss_keys(self) -> tuple[str, ...]:
        """Keys of the dict that a forward returns: the same on every process and every step."""
        return tuple(f"loss_{self.name}_{term}" for term in self.weights)

    @property
    def memory_bytes(self) -> int:
        """Memory of the banks, full or not; 0 for a method without one."""
        return sum(module.num_bytes for module in self.modules() if isinstance(module, MemoryBank))

    @abc.abstractmethod
    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the unweighted loss of each term in :attr:`weights`, in float32 or better.

        The mean over processes of a returned scalar must be the loss of the whole batch
        (``common/distributed.py``), collectives must be unconditional, and every scalar must be finite and
        attached to the graph whatever the labels are.
        """

    def update_state(self, inputs: RegularizerInput) -> None:
        """Moves the state by one step; called without gradient, in training only."""

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Scalars that tell how the method is doing; no collectives, no effect on training."""
        return {}

    def forward(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the weighted losses of one training forward and moves the state.

        Args:
            inputs: taps and labels of this forward.

        Returns:
            ``{"loss_<name>_<term>": scalar}`` with the keys of :attr:`loss_keys`.
        """
        feature = inputs.taps[self.feature_tap]
        with torch.autocast(feature.device.type, enabled=False):
            terms = self.losses(inputs)
            anchor = self._anchor(feature)
            scale = self._schedule()
            result = {
                f"loss_{self.name}_{term}": terms[term] * (scale * weight) + anchor
                for term, weight in self.weights.items()
            }
            # PreciseBN runs training-mode forwards under no_grad: they must leave no trace.
            if self.training and torch.is_grad_enabled():
                with torch.no_grad():
                    self.update_state(inputs)
                    self.num_forwards += 1
                    self._count_zeros(terms)
                    self._record_diagnostics(inputs)
        return result

    def _schedule(self) -> Tensor | float:
        """Factor of all weights at this forward: 0 before the losses begin and after they end."""
        scale: Tensor | float = 1.0
        # On the device: comparing in Python would make the host wait for a GPU.
        if self.warmup_iters > 0:
            progress = self.num_forwards.float() / self.warmup_iters
            scale = progress.clamp(max=1.0) if self.warmup_method == "linear" else (progress >= 1.0).float()
        if self.until_iter > 0:
            scale = scale * (self.num_forwards < self.until_iter).float()
        return scale

    def _anchor(self, feature: Tensor) -> Tensor:
        """A zero that every own parameter is attached to, so that none is ever unused."""
        zero = torch.zeros((), device=feature.device, dtype=loss_precision(feature.dtype))
        for parameter in self.parameters():
            zero = zero + 0.0 * parameter.sum()
        return zero

    def _count_zeros(self, terms: Mapping[str, Tensor]) -> None:
        if not self.weights:
            return
        # Over all processes, as all state: a process may well have nothing to regularize.
        alive = all_reduce_sum_constant(torch.stack([terms[term] != 0 for term in self.weights]).long())
        self.zero_streaks.copy_((self.zero_streaks + 1) * (alive == 0))

    def _record_diagnostics(self, inputs: RegularizerInput) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        if (storage.iter + 1) % self.diagnostics_period:
            return
        values = self.diagnostics(inputs)
        # One transfer for all of them.
        scalars = [value.double().reshape(1) for value in values.values()]
        starts = self.num_forwards - self.zero_streaks
        numbers = torch.cat([*scalars, self.zero_streaks, starts]).tolist()
        for key in values:
            storage.put_scalar(f"{self.name}/{key}", numbers.pop(0))
        count = len(self.weights)
        self._warn_about_zeros(numbers[:count], numbers[count:])

    def _warn_about_zeros(self, streaks: Sequence[float], starts: Sequence[float]) -> None:
        """Warns once of each streak of zeros; what makes a streak one and the same is where it began."""
        for term, streak, start in zip(self.weights, streaks, starts, strict=True):
            long_enough = 0 < self.warn_zero_steps <= streak
            if not long_enough or self._warned.get(term) == start:
                continue
            self._warned[term] = start
            logger.warning(
                "loss_%s_%s has been exactly zero for %d training forwards: it regularizes nothing. Look "
                "at the diagnostics %s/*; check that the labels hold several classes, and the tap %r.",
                self.name,
                term,
                streak,
                self.name,
                self.feature_tap,
            )

    def extra_repr(self) -> str:
        """Says in the printed model what is regularized and how strongly."""
        return f"feature_tap={self.feature_tap!r}, weights={self.weights}"


def common_arguments(cfg: CfgNode, method: str) -> dict[str, Any]:
    """Arguments of :class:`Regularizer` that every method reads alike.

    Args:
        cfg: a full config.
        method: name of the method's section in ``MODEL.REGULARIZERS``.
    """
    section = cfg.MODEL.REGULARIZERS[method]
    return {
        # Forwards are counted, and a step may have several.
        "warmup_iters": section.WARMUP_ITERS * cfg.SOLVER.ACCUM_STEPS,
        "warmup_method": section.WARMUP_METHOD,
        "until_iter": section.UNTIL_ITER * cfg.SOLVER.ACCUM_STEPS,
        "diagnostics_period": cfg.MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD,
        "warn_zero_steps": cfg.MODEL.REGULARIZERS.WARN_ZERO_STEPS,
    }
