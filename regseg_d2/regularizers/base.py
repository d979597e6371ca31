"""The contract of a regularizer, its registry and its construction from a config."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from regseg_d2.errors import ConfigError
from regseg_d2.ops.labels import downsample_labels
from regseg_d2.suggestions import did_you_mean

REGULARIZER = Registry("REGULARIZER")
REGULARIZER.__doc__ = """
Training-only losses on features. A class is called with ``(cfg, network)``: the config and the module
that tap paths start from.
"""

WARMUP_METHODS = ("constant", "linear")


@dataclass(frozen=True)
class RegularizerInput:
    """What one training forward offers to every regularizer.

    Attributes:
        taps: recorded tensors by tap name, ``(N, C, h, w)``, attached to the graph.
        targets: labels ``(N, H, W)`` as the head got them, padded with ``ignore_value``.
        ignore_value: label of void pixels.
        image_ids: one id an image, from the data set.
    """

    taps: Mapping[str, Tensor]
    targets: Tensor
    ignore_value: int
    image_ids: tuple[str, ...] = ()
    _labels: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def labels_at(self, size: tuple[int, int]) -> Tensor:
        """Labels ``(N, h, w)`` by nearest neighbour; each size is computed once a step."""
        size = (int(size[0]), int(size[1]))
        if size not in self._labels:
            self._labels[size] = downsample_labels(self.targets, size)
        return self._labels[size]


class Regularizer(nn.Module, abc.ABC):
    """Base of all regularizers.

    A subclass names its loss terms in :attr:`terms`, computes them in :meth:`losses`, and, if it has
    state, changes that in :meth:`update_state`. What every method shares is written here, once:
    float32 arithmetic with autocast off, weights and warm-up, losses that stay attached to the graph,
    and state that moves in training only.

    Args:
        feature_tap: name of the tap whose tensor is regularized.
        weights: weight of each loss term, by name. A term with weight 0 is not returned.
        warmup_iters: training forwards before the losses have their full weight.
        warmup_method: ``"constant"``: weight 0 before, ``"linear"``: growing from 0.
        diagnostics_period: training iterations between two records of diagnostics.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    #: Names of the loss terms; the keys of the result are ``loss_<name>_<term>``.
    terms: tuple[str, ...] = ()

    num_forwards: Tensor

    def __init__(
        self,
        *,
        name: str,
        feature_tap: str,
        weights: Mapping[str, float],
        warmup_iters: int = 0,
        warmup_method: str = "constant",
        diagnostics_period: int = 20,
    ) -> None:
        super().__init__()
        if warmup_method not in WARMUP_METHODS:
            raise ConfigError(f"{name}: WARMUP_METHOD is {warmup_method!r}; expected one of {WARMUP_METHODS}")
        unknown = set(weights) - set(self.terms)
        if unknown or any(weight < 0 for weight in weights.values()):
            raise ConfigError(f"{name}: weights are {dict(weights)}; expected numbers >= 0 for {self.terms}")
        self.name = name
        self.feature_tap = feature_tap
        self.weights = {term: float(weights[term]) for term in self.terms if weights.get(term)}
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.diagnostics_period = diagnostics_period
        # A buffer, so that a resumed run stands at the same point of its warm-up.
        self.register_buffer("num_forwards", torch.zeros((), dtype=torch.long))

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all taps that :meth:`losses` reads."""
        return (self.feature_tap,)

    @property
    def loss_keys(self) -> tuple[str, ...]:
        """Keys of the dict that a forward returns: the same on every process and every step."""
        return tuple(f"loss_{self.name}_{term}" for term in self.weights)

    @abc.abstractmethod
    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the unweighted loss of each term in :attr:`weights`, in float32 or better.

        The mean over processes of a returned scalar must be the loss of the whole batch
        (``distributed.py``), collectives must be unconditional, and every scalar must be finite and
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
            scale = self._warmup_scale()
            result = {
                f"loss_{self.name}_{term}": terms[term] * (scale * weight) + anchor
                for term, weight in self.weights.items()
            }
            # PreciseBN runs training-mode forwards under no_grad: they must leave no trace.
            if self.training and torch.is_grad_enabled():
                with torch.no_grad():
                    self.update_state(inputs)
                    self.num_forwards += 1
                    self._record_diagnostics(inputs)
        return result

    def _warmup_scale(self) -> Tensor | float:
        if self.warmup_iters <= 0:
            return 1.0
        # On the device: comparing in Python would make the host wait for a GPU.
        progress = self.num_forwards.float() / self.warmup_iters
        return progress.clamp(max=1.0) if self.warmup_method == "linear" else (progress >= 1.0).float()

    def _anchor(self, feature: Tensor) -> Tensor:
        """A zero that every own parameter is attached to, so that none is ever unused."""
        zero = torch.zeros((), device=feature.device, dtype=loss_precision(feature.dtype))
        for parameter in self.parameters():
            zero = zero + 0.0 * parameter.sum()
        return zero

    def _record_diagnostics(self, inputs: RegularizerInput) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        if (storage.iter + 1) % self.diagnostics_period:
            return
        values = self.diagnostics(inputs)
        if values:
            # One transfer for all of them.
            numbers = torch.stack([value.float() for value in values.values()]).tolist()
            for key, number in zip(values, numbers, strict=True):
                storage.put_scalar(f"{self.name}/{key}", number)

    def extra_repr(self) -> str:
        """Says in the printed model what is regularized and how strongly."""
        return f"feature_tap={self.feature_tap!r}, weights={self.weights}"


def loss_precision(dtype: torch.dtype) -> torch.dtype:
    """The type that losses are computed in: float32, or float64 where the model is in float64."""
    return dtype if dtype == torch.float64 else torch.float32


def build_regularizers(cfg: CfgNode, network: nn.Module) -> dict[str, Regularizer]:
    """Builds the regularizers named in ``MODEL.REGULARIZERS.NAMES``.

    Args:
        cfg: a full config.
        network: the module that tap paths start from.

    Returns:
        Regularizers by name, in alphabetical order: the order in the config has no effect.

    Raises:
        ConfigError: if a name is unknown or named twice, or a regularizer cannot be built.
    """
    names = list(cfg.MODEL.REGULARIZERS.NAMES)
    for name in names:
        if name not in REGULARIZER:
            known = [known_name for known_name, _ in REGULARIZER]
            raise ConfigError(
                f"MODEL.REGULARIZERS.NAMES: unknown regularizer {name!r}{did_you_mean(name, known)}; "
                f"known are {sorted(known)}"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"MODEL.REGULARIZERS.NAMES names a regularizer twice: {names}")
    return {name: REGULARIZER.get(name)(cfg, network) for name in sorted(names)}
