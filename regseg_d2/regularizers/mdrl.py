"""MDRL: the consistency losses of multiple distributions per class (Yin et al.)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum_constant, global_mean
from regseg_d2.ops import mdrl as ops
from regseg_d2.ops.sinkhorn import MIN_SMOOTHNESS, sinkhorn_assignment
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.state.distribution_memory import DistributionMemory


@dataclass
class _Step:
    """What one forward computed, without gradient.

    Attributes:
        scale: ``(B, P)``, one over the length of each pixel's feature.
        labels: ``(B, P)``, -1 where a pixel does not count.
        distributions: ``(K, N, Z)`` that pixels were compared with.
        active: ``(K,)`` bool, classes that have distributions.
        best: ``(B, K, P)``, see ``ops.Similarities``.
        own: ``(B, N, P)``.
        pixels: ``(K, N)``, this process's pixels that went to each distribution; None before that is decided.
    """

    scale: Tensor
    labels: Tensor
    distributions: Tensor
    active: Tensor
    best: Tensor
    own: Tensor
    pixels: Tensor | None = None


@REGULARIZER.register()
class MDRL(Regularizer):
    """Compares pixels with N distributions per class, and moves these.

    - ``local`` (Eq. 14): a softmax over classes, each represented by its distribution nearest to the pixel,
    - ``global`` (Eq. 15): all distributions of the pixel's class against those of all other classes.

    Distributions are constants in both. A class takes part from the first step on that shows a pixel of it,
    see :class:`DistributionMemory`. With the stage ``AUGMENT: MDRL`` in the head the memory is that stage's
    (:meth:`take_memory`), stays in the network at inference, and is moved from here; else the memory is the
    regularizer's own and nothing is left of it at inference.

    Defaults are the paper's, unless something else is said; there is no published code. Its place is R, the
    feature that the head's stage compares with its memory, or without a stage the classifier's input. The
    weights are alpha and beta of Eq. 18; Table 4 has 0.01 and 0.02 for ``local``, 0.01 to 0.45 for
    ``global``. Sane: 0 to 1.

    Args:
        num_classes: number of classes K.
        channels: channels Z of the feature.
        num_distributions: distributions per class N: 1, 3 ... 15 in Table 2. Sane: 1 to 15; memory and time
            grow with K * N.
        momentum: mu of Eq. 8, share of the old distribution in the new one. Sane: 0.9 to 0.9999.
        sinkhorn_iters: iterations of the clustering (Eq. 7). The paper says "few"; 3 as in the work it
            follows (Zhou et al., CVPR 2022). Sane: 1 to 10.
        sinkhorn_lambda: lambda of Eq. 6: smaller assigns more sharply. The paper gives no value; 0.05 as in
            Zhou et al. Sane: 0.01 to 0.5; at least 0.005.
        temperature: tau of Eq. 15. Sane: 0.05 to 1; at least 0.02.
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"local": 0.01, "global": 0.05}
    needs_channels = True
    paper_place = "MDRL stage"

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        num_distributions: int = 9,
        momentum: float = 0.999,
        sinkhorn_iters: int = 3,
        sinkhorn_lambda: float = 0.05,
        temperature: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        self.check_option("num_distributions", num_distributions, num_distributions >= 1, "1 or more")
        self.check_option("momentum", momentum, 0.0 <= momentum <= 1.0, "a number in [0, 1]")
        self.check_option("sinkhorn_iters", sinkhorn_iters, sinkhorn_iters >= 1, "1 or more")
        smooth_enough = sinkhorn_lambda >= MIN_SMOOTHNESS
        self.check_option("sinkhorn_lambda", sinkhorn_lambda, smooth_enough, f"at least {MIN_SMOOTHNESS}")
        warm_enough = temperature >= ops.MIN_TEMPERATURE
        self.check_option("temperature", temperature, warm_enough, f"at least {ops.MIN_TEMPERATURE}")
        self.num_distributions = num_distributions
        self.momentum = momentum
        self.sinkhorn_iters = sinkhorn_iters
        self.sinkhorn_lambda = sinkhorn_lambda
        self.temperature = temperature
        # In a tuple, or it would become a sub-module, and be twice in the state dict of the network.
        self._head_memory: tuple[DistributionMemory | None] = (None,)
        self.own_memory: DistributionMemory | None = None
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the memory, where there is none in the head."""
        if self._head_memory[0] is None:
            self.own_memory = DistributionMemory(
                self.num_classes, self.num_distributions, channels, self.momentum
            )

    def take_memory(self, memory: DistributionMemory) -> None:
        """Takes the memory of the head's stage in place of an own one; it is no part of this module."""
        self._head_memory = (memory,)
        self.own_memory = None

    @property
    def memory(self) -> DistributionMemory:
        """The memory that this regularizer compares with and moves: the head's, or its own."""
        memory = self._head_memory[0] or self.own_memory
        assert memory is not None
        return memory

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes both losses; means over the pixels whose class has distributions."""
        step, compared = self._compare(inputs)
        counted = (step.labels >= 0).to(compared.own.dtype)
        losses = {}
        if "local" in self.weights:
            local = ops.local_losses(compared.best, step.labels)
            losses["local"] = global_mean((local * counted).sum(), counted.sum())
        if "global" in self.weights:
            per_pixel = ops.global_losses(compared.own, compared.log_total, self.temperature)
            losses["global"] = global_mean((per_pixel * counted).sum(), counted.sum())
        return losses, step

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Clusters the pixels of each class (Eq. 7) and moves its distributions (Eq. 8)."""
        num_classes, num_distributions, channels = step.distributions.shape
        one_hot = self._one_hot(inputs)
        shares = sinkhorn_assignment(step.own, one_hot, self.sinkhorn_lambda, self.sinkhorn_iters)
        num_slots = num_classes * num_distributions
        slots = torch.where(
            step.labels >= 0, step.labels * num_distributions + ops.first_largest(shares), num_slots
        )
        features = inputs.feature(self.feature_tap).flatten(2)
        sums = ops.sums_of_assigned(features, step.scale, slots, num_slots)
        sums = all_reduce_sum_constant(sums).view(num_classes, num_distributions, channels)
        self.memory.update(step.distributions, sums)
        pixels = torch.zeros(num_slots + 1, dtype=torch.long, device=slots.device)
        pixels = pixels.scatter_add_(0, slots.flatten(), torch.ones_like(slots.flatten()))
        step.pixels = pixels[:num_slots].view(num_classes, num_distributions)

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """How full and how used the memory is, and how near pixels are to it.

        ``classes_with_memory`` counts the classes that have distributions. ``own_similarity`` and
        ``other_similarity`` are the mean cosines of this process's pixels to the nearest distribution of
        their class and to the nearest one of any other class. ``usage_entropy`` is, averaged over the
        classes of this process, the entropy of how its pixels were shared among the N distributions, over
        ``log N``: 1 is an even use. ``spread`` is the mean cosine between the distributions of one class: at
        1 they are all the same.
        """
        assert step.pixels is not None
        counted = (step.labels >= 0).to(step.own.dtype)
        num_counted = counted.sum().clamp(min=1)
        own_class = self._one_hot(inputs) > 0
        rivals = step.active.view(1, -1, 1) & ~own_class
        other = torch.where(rivals, step.best, -1.0).amax(dim=1)
        return {
            "classes_with_memory": self.memory.seen.sum(),
            "own_similarity": (step.own.amax(dim=1) * counted).sum() / num_counted,
            "other_similarity": (other * counted).sum() / num_counted,
            "usage_entropy": _usage_entropy(step.pixels.double()),
            "spread": _mean_cosine_within_classes(self.memory.distributions, self.memory.seen),
        }

    def _compare(self, inputs: RegularizerInput) -> tuple[_Step, ops.Similarities]:
        feature = inputs.feature(self.feature_tap)
        features = feature.flatten(2)
        sums, _ = inputs.class_sums(self.feature_tap)
        distributions, active = self.memory.started(all_reduce_sum_constant(sums.sum(dim=0)))
        labels = inputs.labels_at(feature.shape[-2:]).flatten(1)
        labels = torch.where((labels >= 0) & active[labels.clamp(min=0)], labels, -1)
        scale = ops.inverse_norms(features)
        compared = ops.similarities(features, scale, distributions, active, labels, self.temperature)
        best, own = compared.best.detach(), compared.own.detach()
        return _Step(scale, labels, distributions, active, best, own), compared

    def _one_hot(self, inputs: RegularizerInput) -> Tensor:
        feature = inputs.feature(self.feature_tap)
        return inputs.one_hot_at(feature.shape[-2:], feature.dtype)


def _usage_entropy(pixels: Tensor) -> Tensor:
    """Mean over classes with pixels of the entropy of ``(K, N)`` pixel counts, over ``log N``."""
    totals = pixels.sum(dim=1)
    shares = pixels / totals.clamp(min=1).unsqueeze(1)
    entropies = torch.special.entr(shares).sum(dim=1) / math.log(max(pixels.shape[1], 2))
    return entropies.sum() / (totals > 0).sum().clamp(min=1)


def _mean_cosine_within_classes(distributions: Tensor, seen: Tensor) -> Tensor:
    num_distributions = distributions.shape[1]
    cosines = torch.bmm(distributions, distributions.transpose(1, 2))
    off_diagonal = cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(dim=1)
    pairs = seen.sum() * num_distributions * (num_distributions - 1)
    return (off_diagonal * seen).sum() / pairs.clamp(min=1)
