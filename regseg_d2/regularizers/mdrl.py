"""MDRL: the consistency losses of multiple distributions per class (Yin et al.)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import all_reduce_sum_constant, global_mean
from regseg_d2.ops import mdrl as ops
from regseg_d2.ops.sinkhorn import MIN_SMOOTHNESS, sinkhorn_assignment
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import find_place
from regseg_d2.state.distribution_memory import DistributionMemory

BASE_FEATURE_TAP = "sem_seg_head.augment.base_predictor:in"


class _Step(NamedTuple):
    """What the last forward computed, without gradient.

    Attributes:
        scale: ``(B, P)``, one over the length of each pixel's feature.
        labels: ``(B, P)``, -1 where a pixel does not count.
        distributions: ``(K, N, Z)`` that pixels were compared with.
        active: ``(K,)`` bool, classes that have distributions.
        best: ``(B, K, P)``, see ``ops.Similarities``.
        own: ``(B, N, P)``.
    """

    scale: Tensor
    labels: Tensor
    distributions: Tensor
    active: Tensor
    best: Tensor
    own: Tensor


@REGULARIZER.register()
class MDRL(Regularizer):
    """Compares pixels with N distributions per class, and moves these.

    - ``local`` (Eq. 14): a softmax over classes, each represented by its distribution nearest to the pixel,
    - ``global`` (Eq. 15): all distributions of the pixel's class against those of all other classes.

    Distributions are constants in both. A class takes part from the first step on that shows a pixel of it,
    see :class:`DistributionMemory`. With the stage ``AUGMENT: MDRL`` in the head the memory is that stage's,
    stays in the network at inference, and is moved from here; else the memory is the regularizer's own and
    nothing is left of it at inference.

    Args:
        num_classes: number of classes K.
        channels: channels Z of the feature.
        num_distributions: distributions per class N.
        momentum: mu of Eq. 8.
        sinkhorn_iterations: iterations of the clustering, Eq. 7.
        sinkhorn_smoothness: lambda of Eq. 6.
        temperature: tau of Eq. 15.
        head_memory: memory of the head's stage, or None. It is not made a part of this module.
        **common: arguments of :class:`Regularizer`.

    Raises:
        ConfigError: if an option is out of its range.
    """

    terms = ("local", "global")

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_distributions: int = 9,
        momentum: float = 0.999,
        sinkhorn_iterations: int = 3,
        sinkhorn_smoothness: float = 0.05,
        temperature: float = 0.5,
        head_memory: DistributionMemory | None = None,
        name: str = "mdrl",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        self.check_option("NUM_DISTRIBUTIONS", num_distributions, num_distributions >= 1, "1 or more")
        self.check_option("MOMENTUM", momentum, 0.0 <= momentum <= 1.0, "a number in [0, 1]")
        self.check_option("SINKHORN_ITERS", sinkhorn_iterations, sinkhorn_iterations >= 1, "1 or more")
        smooth_enough = sinkhorn_smoothness >= MIN_SMOOTHNESS
        self.check_option("SINKHORN_LAMBDA", sinkhorn_smoothness, smooth_enough, f"at least {MIN_SMOOTHNESS}")
        warm_enough = temperature >= ops.MIN_TEMPERATURE
        self.check_option("TEMPERATURE", temperature, warm_enough, f"at least {ops.MIN_TEMPERATURE}")
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_smoothness = sinkhorn_smoothness
        self.temperature = temperature
        # In a tuple, or it would become a sub-module, and be twice in the state dict of the network.
        self._head_memory = (head_memory,)
        self.own_memory = (
            DistributionMemory(num_classes, num_distributions, channels, momentum)
            if head_memory is None
            else None
        )
        self._step: _Step | None = None
        self._pixels_per_distribution: Tensor | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.MDRL``."""
        mdrl = cfg.MODEL.REGULARIZERS.MDRL
        augment = getattr(getattr(network, "sem_seg_head", None), "augment", None)
        memory = getattr(augment, "memory", None)
        at_stage = isinstance(memory, DistributionMemory) and mdrl.CLASSIFIER == mdrl.FEATURES == "auto"
        place = find_place(
            cfg, network, "MDRL", paper_tap=BASE_FEATURE_TAP if at_stage else "", reads_logits=False
        )
        return {
            **common_arguments(cfg, "MDRL"),
            "feature_tap": place.feature_tap,
            "channels": place.channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "weights": {"local": mdrl.WEIGHT * mdrl.LOCAL_WEIGHT, "global": mdrl.WEIGHT * mdrl.GLOBAL_WEIGHT},
            "num_distributions": mdrl.NUM_DISTRIBUTIONS,
            "momentum": mdrl.MOMENTUM,
            "sinkhorn_iterations": mdrl.SINKHORN_ITERS,
            "sinkhorn_smoothness": mdrl.SINKHORN_LAMBDA,
            "temperature": mdrl.TEMPERATURE,
            "head_memory": memory if at_stage else None,
        }

    @property
    def memory(self) -> DistributionMemory:
        """The memory that this regularizer compares with and moves: the head's, or its own."""
        memory = self._head_memory[0] or self.own_memory
        assert memory is not None
        return memory

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
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
        self._step = step
        return losses

    def update_state(self, inputs: RegularizerInput) -> None:
        """Clusters the pixels of each class (Eq. 7) and moves its distributions (Eq. 8)."""
        assert self._step is not None
        step = self._step
        num_classes, num_distributions, channels = step.distributions.shape
        one_hot = self._one_hot(inputs)
        shares = sinkhorn_assignment(step.own, one_hot, self.sinkhorn_smoothness, self.sinkhorn_iterations)
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
        self._pixels_per_distribution = pixels[:num_slots].view(num_classes, num_distributions)

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """How full and how used the memory is, and how near pixels are to it.

        ``classes_with_memory`` counts the classes that have distributions. ``own_similarity`` and
        ``other_similarity`` are the mean cosines of this process's pixels to the nearest distribution of
        their class and to the nearest one of any other class. ``usage_entropy`` is, averaged over the
        classes of this process, the entropy of how its pixels were shared among the N distributions, over
        ``log N``: 1 is an even use. ``spread`` is the mean cosine between the distributions of one class: at
        1 they are all the same.
        """
        assert self._step is not None and self._pixels_per_distribution is not None
        step = self._step
        counted = (step.labels >= 0).to(step.own.dtype)
        num_counted = counted.sum().clamp(min=1)
        own_class = self._one_hot(inputs) > 0
        rivals = step.active.view(1, -1, 1) & ~own_class
        other = torch.where(rivals, step.best, -1.0).amax(dim=1)
        return {
            "classes_with_memory": self.memory.seen.sum(),
            "own_similarity": (step.own.amax(dim=1) * counted).sum() / num_counted,
            "other_similarity": (other * counted).sum() / num_counted,
            "usage_entropy": _usage_entropy(self._pixels_per_distribution.double()),
            "spread": _mean_cosine_within_classes(self.memory.distributions, self.memory.seen),
        }

    def _compare(self, inputs: RegularizerInput) -> tuple[_Step, ops.Similarities]:
        feature = inputs.feature(self.feature_tap)
        features = feature.flatten(2)
        sums, _ = inputs.class_sums(self.feature_tap, self.memory.num_classes)
        distributions, active = self.memory.started(all_reduce_sum_constant(sums.sum(dim=0)))
        labels = inputs.labels_at(feature.shape[-2:]).flatten(1)
        # A label beyond the classes is as good as void.
        is_class = (labels >= 0) & (labels < len(active))
        labels = torch.where(is_class & active[labels.clamp(0, len(active) - 1)], labels, -1)
        scale = ops.inverse_norms(features)
        compared = ops.similarities(features, scale, distributions, active, labels, self.temperature)
        best, own = compared.best.detach(), compared.own.detach()
        return _Step(scale, labels, distributions, active, best, own), compared

    def _one_hot(self, inputs: RegularizerInput) -> Tensor:
        feature = inputs.feature(self.feature_tap)
        return inputs.one_hot_at(feature.shape[-2:], self.memory.num_classes, feature.dtype)


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
