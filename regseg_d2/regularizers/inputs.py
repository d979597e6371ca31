"""What a training forward offers to the regularizers; what several of them need is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.common.errors import UserError
from regseg_d2.ops.class_statistics import ClassStatistics, class_statistics
from regseg_d2.ops.labels import downsample_labels, majority_labels, one_hot_labels
from regseg_d2.ops.precision import full_precision

T = TypeVar("T")


#: Names of the taps where nothing else is said.
FEATURES, LOGITS = "features", "logits"


@dataclass(frozen=True)
class LabelSampling:
    """How label maps come down to the size of a feature; ``MODEL.REGULARIZERS.LABELS`` and ``LABEL_PURITY``.

    Attributes:
        rule: ``"center"``, the pixel at a cell's center; ``"corner"``, its first pixel, as published codes
            do; ``"majority"``, the class of most of its pixels.
        purity: with ``"majority"``, a cell is void where its class holds less than this share of its
            pixels, void ones included.
    """

    rule: str = "center"
    purity: float = 0.0

    def __call__(self, labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int) -> Tensor:
        """Brings labels ``(N, H, W)`` to ``(N, h, w)``; what is no class, or numbered like void, is -1."""
        if self.rule == "majority":
            labels = labels.masked_fill(labels == ignore_index, -1)
            return majority_labels(labels, size, num_classes, self.purity)
        labels = downsample_labels(labels, size, self.rule)
        is_class = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
        return labels.masked_fill(~is_class, -1)


@dataclass(frozen=True)
class RegularizerInput:
    """Taps and labels of one training forward.

    Everything derived from them is kept, so that regularizers which need the same labels,
    predictions or class sums share them.

    Attributes:
        taps: recorded tensors by tap name, ``(N, C, h, w)``, attached to the graph.
        labels: class ids ``(N, H, W)``; those outside ``[0, K)`` are void.
        num_classes: number of classes K.
        ignore_index: label of void pixels, even if it is numbered like a class.
        label_sampling: how labels come down to the size of a feature.

    Raises:
        UserError: if the labels are no class ids of the images that the taps show.
    """

    taps: Mapping[str, Tensor]
    labels: Tensor
    num_classes: int
    ignore_index: int = 255
    label_sampling: LabelSampling = LabelSampling()
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        labels = self.labels
        if not isinstance(labels, Tensor):
            raise UserError(f"labels are a {type(labels).__name__}; expected a tensor of class ids (N, H, W)")
        is_right = labels.ndim == 3 and labels.numel() > 0
        if not is_right or labels.is_floating_point() or labels.is_complex():
            raise UserError(
                f"labels are {labels.dtype} of the shape {tuple(labels.shape)}; expected class ids (N, H, W) "
                "of an integer type, one image or more"
            )
        for name, tensor in self.taps.items():
            if tensor.ndim != 4 or len(tensor) != len(labels):
                raise UserError(
                    f"{name} is of the shape {tuple(tensor.shape)}; expected ({len(labels)}, C, h, w): there "
                    f"are labels of {len(labels)} images"
                )

    def labels_at(self, size: Sequence[int]) -> Tensor:
        """Labels ``(N, h, w)`` by ``label_sampling``; void is -1, all others are in ``[0, K)``."""

        def compute() -> Tensor:
            height, width = int(size[0]), int(size[1])
            labels = self.labels if self.labels.dtype == torch.long else self.labels.long()
            return self.label_sampling(labels, (height, width), self.num_classes, self.ignore_index)

        return self._once(("labels", *size), compute)

    def one_hot_at(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """One-hot labels ``(N, K, h * w)``; a void pixel has no one."""

        def compute() -> Tensor:
            return one_hot_labels(self.labels_at(size).flatten(1), self.num_classes, dtype)

        return self._once(("one_hot", *size, dtype), compute)

    def feature(self, tap: str) -> Tensor:
        """The tensor of a tap in the precision of losses: float32, or float64 where it has that."""
        tensor = self.taps[tap]
        return self._once(("feature", tap), lambda: full_precision(tensor))

    def class_statistics(self, tap: str) -> ClassStatistics:
        """Sums and counts of a tap's feature for each class, and what else centers are made of."""

        def compute() -> ClassStatistics:
            feature = self.feature(tap)
            one_hot = self.one_hot_at(feature.shape[-2:], feature.dtype)
            return class_statistics(feature.flatten(2), one_hot)

        return self._once(("class_statistics", tap), compute)

    def class_sums(self, tap: str) -> tuple[Tensor, Tensor]:
        """Sums ``(N, K, C)`` of a tap's feature over the pixels of each class, and counts ``(N, K)``."""
        statistics = self.class_statistics(tap)
        return statistics.sums, statistics.counts

    def predictions(self, logits_tap: str, size: Sequence[int]) -> Predictions:
        """What the network predicts at feature size, without gradient.

        Logits of another size than the feature are brought to it bilinearly.

        Args:
            logits_tap: tap of the logits.
            size: height and width of the feature.
        """

        def compute() -> Predictions:
            logits = self.feature(logits_tap).detach()
            if logits.shape[-2:] != tuple(size):
                logits = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
            return Predictions(logits)

        return self._once(("predictions", logits_tap, *size), compute)

    def _once(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._cache:
            # What one regularizer asks for without gradient (for its state, its diagnostics) another
            # one may need with it.
            with torch.enable_grad():
                self._cache[key] = compute()
        return self._cache[key]


class Predictions:
    """Class and probability of each pixel; every part is computed when it is first asked for.

    Args:
        logits: detached logits ``(N, K, h, w)`` in float32 or float64.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @cached_property
    def _largest(self) -> tuple[Tensor, Tensor]:
        values, classes = self.logits.max(dim=1)
        return values, classes

    @cached_property
    def log_normalizer(self) -> Tensor:
        """``log sum_k exp(logits_k)``, ``(N, h, w)``."""
        return self.logits.logsumexp(dim=1)

    @property
    def classes(self) -> Tensor:
        """The class of the largest logit, ``(N, h, w)``."""
        return self._largest[1]

    @cached_property
    def confidence(self) -> Tensor:
        """The largest softmax probability, ``(N, h, w)``."""
        return (self._largest[0] - self.log_normalizer).exp()

    def probability_of(self, classes: Tensor) -> Tensor:
        """Softmax probability of one class a pixel.

        Args:
            classes: ``(N, h, w)`` class ids; where negative (void) the result is that of class 0.
        """
        return (self.logit_of(classes) - self.log_normalizer).exp()

    def logit_of(self, classes: Tensor) -> Tensor:
        """Logit of one class a pixel; see :meth:`probability_of`."""
        return self.logits.gather(1, classes.clamp(min=0).unsqueeze(1)).squeeze(1)
