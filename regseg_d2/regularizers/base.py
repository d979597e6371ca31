"""The contract of a regularizer, and the registry."""

from __future__ import annotations

import abc
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from fvcore.common.registry import Registry
from torch import Tensor, nn

from regseg_d2.common.distributed import Processes, all_reduce_sum_constant, sums_over
from regseg_d2.common.errors import OptionError, UserError
from regseg_d2.common.metric_names import UNWEIGHTED, loss_name
from regseg_d2.ops.precision import loss_precision
from regseg_d2.regularizers.compiling import outside_of_graphs
from regseg_d2.regularizers.inputs import FEATURES, LOGITS, RegularizerInput
from regseg_d2.state.memory_bank import MemoryBank

logger = logging.getLogger(__name__)

REGULARIZER = Registry("REGULARIZER")
REGULARIZER.__doc__ = """
Training-only losses on features. What is registered here can be named in ``MODEL.REGULARIZERS.NAMES``, and
has a section of keys there, made from the constructor's signature.
"""

WARMUP_METHODS = ("constant", "linear")

#: Asked at every training forward; None, or a function that is called with the name and the value of each
#: diagnostic.
Observer = Callable[[], Callable[[str, float], Any] | None]


class Regularizer(nn.Module, abc.ABC):
    """Base of all regularizers.

    A subclass names its loss terms in :attr:`terms`, computes them in :meth:`losses`, and, if it has
    state, changes that in :meth:`update_state`. What every method shares is written here, once:
    float32 arithmetic with autocast off, weights and warm-up, losses that stay attached to the graph,
    and state that moves in training only.

    Parameters and buffers stay in float32 when a network is brought to half precision with ``.to()`` or
    ``.half()``: a moving average would stand still in it.

    Args:
        num_classes: number of classes K.
        channels: channels C of the regularized feature. It may be left out where nothing is made of that
            size, and where :func:`~regseg_d2.regularizers.attach` or a config finds it.
        name: how its losses and diagnostics are called; by default after the class.
        weights: weight of each loss term, by name. A term that is missing, or has weight 0, is not returned.
            None is the paper's weights, :attr:`terms`.
        feature_tap: name of the tap whose tensor is regularized.
        logits_tap: name of the tap of the logits, for a method that looks at predictions.
        ignore_index: label of void pixels, where labels are given to the regularizer itself.
        warmup_iters: training forwards before the losses have their full weight.
        warmup_method: ``"constant"``: weight 0 before, ``"linear"``: growing from 0.
        until_iter: training forwards after which the losses have weight 0, for a method that shall only
            prepare the features; 0 is never.
        warn_zero_steps: training forwards in a row in which a loss may be exactly zero before a
            warning says so; 0 never warns. It is looked at when diagnostics are observed.
        process_group: processes whose batches make up the whole batch; None is all there are.

    Attributes:
        observer: gets the diagnostics; None is nobody.
        processes: processes whose batches make up the whole batch.

    Raises:
        OptionError: if an argument is out of its range.
    """

    #: The loss terms, each with the paper's weight; the keys of the result are ``loss_<name>_<term>``.
    terms: ClassVar[Mapping[str, float]] = MappingProxyType({})

    #: Whether the method looks at predictions.
    reads_logits: bool = False

    #: Whether something is made of the size of the feature.
    needs_channels: bool = False

    #: Where the paper takes the feature, by its name in ``segmentor/places.py``.
    paper_place: ClassVar[str] = "penultimate"

    #: What to say where the network has no such place, and the method is then not quite its paper's.
    without_paper_place: ClassVar[str] = ""

    #: Names in the config of arguments that are not called there as here in capitals.
    config_keys: ClassVar[Mapping[str, str]] = MappingProxyType({})

    #: Keys of the method's section that are the size of its banks and the type they are kept in.
    bank_keys: tuple[str, str] = ("BANK_SIZE", "BANK_DTYPE")

    num_forwards: Tensor
    zero_streaks: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        name: str | None = None,
        weights: Mapping[str, float] | None = None,
        feature_tap: str = FEATURES,
        logits_tap: str = LOGITS,
        ignore_index: int = 255,
        warmup_iters: int = 0,
        warmup_method: str = "constant",
        until_iter: int = 0,
        warn_zero_steps: int = 200,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        weights = self.terms if weights is None else weights
        is_known = set(weights) <= set(self.terms)
        self.check_option("num_classes", num_classes, num_classes >= 1, "1 or more")
        self.check_option("channels", channels, channels is None or channels >= 1, "1 or more")
        self.check_choice("warmup_method", warmup_method, WARMUP_METHODS)
        self.check_option(
            "weights",
            dict(weights),
            is_known and all(0 <= weight < math.inf for weight in weights.values()),
            f"finite numbers >= 0 for {tuple(self.terms)}",
        )
        self.check_option(
            "until_iter",
            until_iter,
            until_iter == 0 or until_iter > warmup_iters,
            f"0 for no end, or more than the warm-up of {warmup_iters} (counted in forwards), or the losses "
            "would end before they begin",
        )
        self.name = name or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        self.num_classes = num_classes
        self.channels = channels
        self.weights = {term: float(weights[term]) for term in self.terms if weights.get(term)}
        self.feature_tap = feature_tap
        self.logits_tap = logits_tap
        self.ignore_index = ignore_index
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.until_iter = until_iter
        self.warn_zero_steps = warn_zero_steps
        self.observer: Observer | None = None
        self.processes = Processes(process_group)
        # Where the streak of zeros began that was last warned of, by term.
        self._warned: dict[str, float] = {}
        # A buffer, so that a resumed run stands at the same point of its warm-up.
        self.register_buffer("num_forwards", torch.zeros((), dtype=torch.long))
        self.register_buffer("zero_streaks", torch.zeros(len(self.weights), dtype=torch.long))

    def check_option(self, argument: str, value: object, is_good: bool, expected: str) -> None:
        """Refuses a value of an argument that is not good.

        Raises:
            OptionError: names the argument, the value and what is expected.
        """
        if not is_good:
            raise OptionError(type(self).__name__, argument, f"is {value!r}; expected {expected}")

    def check_choice(self, argument: str, value: str, choices: Sequence[str]) -> None:
        """Refuses a value that is none of ``choices``; see :meth:`check_option`."""
        self.check_option(argument, value, value in choices, f"one of {tuple(choices)}")

    def check_positive(self, argument: str, value: float) -> None:
        """Refuses a value that is not above 0; see :meth:`check_option`."""
        self.check_option(argument, value, value > 0, "a number above 0")

    def set_channels(self, channels: int) -> None:
        """Says how many channels the feature has, where the constructor was not told.

        Args:
            channels: channels C of the feature.

        Raises:
            OptionError: the constructor was told another number.
        """
        if self.channels is None:
            self.channels = channels
            self.make_parts(channels)
        expected = f"{channels}, the channels of the tap {self.feature_tap!r}"
        self.check_option("channels", self.channels, self.channels == channels, expected)

    def make_parts(self, channels: int) -> None:
        """Makes the parameters and the state whose size is that of the feature.

        A subclass that has such parts calls it at the end of its constructor, if that is told the channels.
        """

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all taps that :meth:`losses` reads."""
        return (self.feature_tap, self.logits_tap) if self.reads_logits else (self.feature_tap,)

    @property
    def loss_keys(self) -> tuple[str, ...]:
        """Keys of the dict that a forward returns: the same on every process and every step."""
        return tuple(loss_name(self.name, term) for term in self.weights)

    @property
    def memory_bytes(self) -> int:
        """Memory of the banks, full or not; 0 for a method without one."""
        return sum(module.num_bytes for module in self.modules() if isinstance(module, MemoryBank))

    @abc.abstractmethod
    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], Any]:
        """Computes the unweighted loss of each term in :attr:`weights`, in float32 or better.

        The mean over processes of a returned scalar must be the loss of the whole batch
        (``common/distributed.py``), collectives must be unconditional, and every scalar must be finite and
        attached to the graph whatever the labels are.

        Returns:
            The losses by term, and what :meth:`update_state` and :meth:`diagnostics` of this step need of it.
        """

    def update_state(self, inputs: RegularizerInput, step: Any) -> None:
        """Moves the state by one step; called without gradient, in training only."""

    def diagnostics(self, inputs: RegularizerInput, step: Any) -> dict[str, Tensor]:
        """Scalars that tell how the method is doing; no collectives, no effect on training."""
        return {}

    @outside_of_graphs
    def forward(
        self,
        features: Tensor | RegularizerInput,
        labels: Tensor | None = None,
        *,
        logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the weighted losses of one training forward and moves the state.

        Args:
            features: ``(N, C, h, w)``, any floating type; or taps and labels of this forward, prepared for
                several regularizers.
            labels: ``(N, H, W)`` class ids; those outside ``[0, K)`` are void.
            logits: ``(N, K, h', w')``, for a method that looks at predictions.

        Returns:
            ``{"loss_<name>_<term>": scalar}`` with the keys of :attr:`loss_keys`.

        Raises:
            UserError: if something is missing or has another shape.
        """
        inputs = (
            features
            if isinstance(features, RegularizerInput)
            else plain_input([self], features, labels, logits)
        )
        self._check_inputs(inputs)
        feature = inputs.taps[self.feature_tap]
        with torch.autocast(feature.device.type, enabled=False), sums_over(self.processes):
            terms, step = self.losses(inputs)
            anchor = self._anchor(feature)
            scale = self._schedule()
            result = {
                loss_name(self.name, term): terms[term] * (scale * weight) + anchor
                for term, weight in self.weights.items()
            }
            # PreciseBN runs training-mode forwards under no_grad: they must leave no trace.
            if self.training and torch.is_grad_enabled():
                with torch.no_grad():
                    self.update_state(inputs, step)
                    self.num_forwards += 1
                    self._count_zeros(terms)
                    self._show_diagnostics(inputs, terms, step)
        return result

    def _check_inputs(self, inputs: RegularizerInput) -> None:
        missing = [tap for tap in self.taps if tap not in inputs.taps]
        if missing:
            raise UserError(
                f"{self.name}: there is no tensor {missing[0]!r}; there are {sorted(inputs.taps)}"
            )
        if inputs.num_classes != self.num_classes:
            raise UserError(
                f"{self.name}: the labels are of {inputs.num_classes} classes; expected {self.num_classes}, "
                "which it was made for"
            )
        logits = inputs.taps[self.logits_tap] if self.reads_logits else None
        if logits is not None and logits.shape[1] != self.num_classes:
            raise UserError(
                f"{self.name}: there are logits of {logits.shape[1]} classes; expected {self.num_classes}"
            )
        channels = inputs.taps[self.feature_tap].shape[1]
        if self.channels is None and self.needs_channels:
            raise UserError(
                f"{self.name}: channels is not known, and parts of that size have to be there before the "
                f"training: give channels={channels} to {type(self).__name__}"
            )
        if channels != self.channels and self.channels is not None:
            raise UserError(f"{self.name}: the feature has {channels} channels; expected {self.channels}")
        for name, parameter in self.named_parameters():
            if parameter.element_size() < 4:
                raise UserError(
                    f"{self.name}: its parameter {name} is {parameter.dtype} in the forward; expected "
                    "torch.float32. A MixedPrecisionPolicy is for the network alone: "
                    "fully_shard(regularized.model, mp_policy=…), then fully_shard(regularized)"
                )

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

    def _show_diagnostics(self, inputs: RegularizerInput, terms: Mapping[str, Tensor], step: Any) -> None:
        put = self.observer() if self.observer is not None else None
        if put is None:
            return
        values = {UNWEIGHTED + loss_name(self.name, term): terms[term] for term in self.weights}
        diagnostics = self.diagnostics(inputs, step)
        values |= {f"{self.name}/{key}": value for key, value in diagnostics.items()}
        # One transfer for all of them.
        scalars = [value.double().reshape(1) for value in values.values()]
        starts = self.num_forwards - self.zero_streaks
        numbers = torch.cat([*scalars, self.zero_streaks, starts]).tolist()
        for key in values:
            put(key, numbers.pop(0))
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Regularizer:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            loses_digits = moved.is_floating_point() and moved.element_size() < 4 <= tensor.element_size()
            return tensor.to(moved.device) if loses_digits else moved

        return super()._apply(keep_precision, recurse)

    def extra_repr(self) -> str:
        """Says in the printed model what is regularized and how strongly."""
        return f"feature_tap={self.feature_tap!r}, weights={self.weights}"


def plain_input(
    regularizers: Iterable[Regularizer], features: Tensor, labels: Tensor | None, logits: Tensor | None
) -> RegularizerInput:
    """Makes the input of regularizers that all read the same feature and the same logits.

    Args:
        regularizers: one or more, for the same classes.
        features: see :meth:`Regularizer.forward`; so are the next two.
        labels: the labels.
        logits: the logits.

    Raises:
        UserError: if something is missing.
    """
    taps: dict[str, Tensor] = {}
    for regularizer in regularizers:
        taps[regularizer.feature_tap] = features
        if regularizer.reads_logits:
            if logits is None:
                raise UserError(f"{regularizer.name} looks at predictions, and was called without logits=…")
            taps[regularizer.logits_tap] = logits
    if labels is None:
        raise UserError(f"{regularizer.name} was called without labels")
    return RegularizerInput(taps, labels, regularizer.num_classes, regularizer.ignore_index)
