"""CAR: class-aware regularizations (Huang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum, all_reduce_sum_constant
from regseg_d2.ops import car as ops
from regseg_d2.ops.class_statistics import ClassStatistics, class_statistics, divide_by_counts
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.state.ema_centers import EmaCenters

CENTERS = ("batch", "image", "ema")
ABSENT_CLASSES = ("exclude", "zero")


class _Step(NamedTuple):
    """What one forward computed, without gradient.

    Attributes:
        centers: ``(G, K, C)``, that pixels were compared with.
        present: bool ``(G, K)``, classes that took part.
        batch_means: means ``(K, C)`` of this batch's pixels, and which classes have one, for a moving
            average.
        losses: the unweighted losses, by term.
        valid: bool ``(N, P)``, pixels of a class.
        about_centers: gives how the pixels lie about the centers; they are measured once.
    """

    centers: Tensor
    present: Tensor
    batch_means: tuple[Tensor, Tensor]
    losses: dict[str, Tensor]
    valid: Tensor
    about_centers: Callable[[], ops.Deviations]


@REGULARIZER.register()
class CAR(Regularizer):
    """Three losses on class centers and pixels; nothing of it is left at inference.

    - ``intra_c2p`` (Eq. 2) pulls pixels to the center of their class,
    - ``inter_c2c`` (Eq. 7) pushes the centers of classes apart,
    - ``inter_c2p`` (Eq. 14) pushes pixels away from the centers of other classes.

    Defaults are the paper's, unless something else is said. The paper's place is the output of a linear
    convolution before the head's last block (``LinearConvBlock``). Sane weights of all three: 0.1 to 2.

    Args:
        num_classes: number of classes K.
        channels: channels C of the feature X; needed for ``centers="ema"``.
        pool: average-pool X by this factor first; 2 on stride-4 features (published code, UPerNet).
        centers: mu of Eq. 1: over the ``"batch"`` of all processes, over each ``"image"`` (Table 4), or a
            moving average, ``"ema"`` (Table 5). With ``"ema"`` the gradient of ``inter_c2c`` flows through
            this batch's share of the average.
        ema_decay: share of the old center in the moving average: 0.8, 0.9 or 0.99 (Table 5).
        eps_c2c: epsilon_0 of Eq. 6; 0.25 on the rows of Table 2 marked with a section sign. Sane: 0 to 1.
        eps_c2p: epsilon_1 of Eq. 13. Sane: 0 to 1.
        scale_c2p: scale the products of Eq. 8 to 10 by ``1 / sqrt(C)``. The paper writes no scale there; the
            published code scales, and so do we.
        absent_classes: ``"exclude"``: a class without a pixel takes no part. ``"zero"``: its zero center
            stays in the softmaxes (published code).
        detach_centers: centers are constants in the two pixel losses, and so is the second operand of Eq. 4
            (published code; the paper does not say).
        reduction: ``"mse"``: mean of squares (paper). ``"squared_mean"``: square of the mean (published
            code).
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"intra_c2p": 1.0, "inter_c2c": 1.0, "inter_c2p": 1.0}
    paper_place = "linear convolution"
    without_paper_place = (
        "the paper's CAR has a linear convolution there, which this head lacks. For the paper's: "
        "MODEL.SEM_SEG_HEAD.PROJECTION LinearConvBlock and PROJECTION_KERNEL_SIZE 1, or the base "
        "regseg:_base_/regularizers/car.yaml"
    )

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        pool: int = 1,
        centers: str = "batch",
        ema_decay: float = 0.9,
        eps_c2c: float = 0.5,
        eps_c2p: float = 0.25,
        scale_c2p: bool = True,
        absent_classes: str = "exclude",
        detach_centers: bool = True,
        reduction: str = "mse",
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        self.check_option("pool", pool, pool >= 1, "1 or more")
        self.check_choice("centers", centers, CENTERS)
        self.check_option("ema_decay", ema_decay, 0.0 <= ema_decay < 1.0, "a number in [0, 1)")
        self.check_choice("absent_classes", absent_classes, ABSENT_CLASSES)
        self.check_choice("reduction", reduction, ops.REDUCTIONS)
        self.pool = pool
        self.centers = centers
        self.ema_decay = ema_decay
        self.eps_c2c = eps_c2c
        self.eps_c2p = eps_c2p
        self.scale_c2p = scale_c2p
        self.absent_classes = absent_classes
        self.detach_centers = detach_centers
        self.reduction = reduction
        self.needs_channels = centers == "ema"
        self.ema: EmaCenters | None = None
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the moving averages, where there are some."""
        if self.centers == "ema":
            self.ema = EmaCenters(self.num_classes, channels, self.ema_decay)

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes the three losses; see the class and ``ops/car.py``."""
        statistics, one_hot, labels = self._statistics(inputs)
        x, _, sums, counts = statistics
        centers, present, batch_means = self._class_centers(sums, counts)
        pixel_centers = centers.detach() if self.detach_centers else centers
        losses = {}
        if "inter_c2c" in self.weights:
            losses["inter_c2c"] = ops.inter_c2c_loss(
                centers, present, self.eps_c2c, self.reduction, self.detach_centers
            )
        # A pass over the feature, for whoever asks first.
        about_centers = cache(lambda: ops.deviations(x, centers, present, labels))
        if "intra_c2p" in self.weights and self.reduction == "mse":
            losses["intra_c2p"] = ops.intra_c2p_loss(statistics, pixel_centers, one_hot, about_centers())
        elif "intra_c2p" in self.weights:
            losses["intra_c2p"] = ops.intra_c2p_loss_of_means(x, pixel_centers, one_hot)
        if "inter_c2p" in self.weights:
            losses["inter_c2p"] = ops.inter_c2p_loss(
                x,
                pixel_centers,
                present,
                one_hot,
                about_centers(),
                self.eps_c2p,
                self.scale_c2p,
                self.reduction,
            )
        detached = {term: loss.detach() for term, loss in losses.items()}
        return losses, _Step(centers.detach(), present, batch_means, detached, labels >= 0, about_centers)

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Moves the averages (``centers="ema"``)."""
        if self.ema is not None:
            self.ema.update(*step.batch_means)

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """Mean distance of a pixel to its center, mean similarity of two centers, classes.

        ``intra_distance`` is the root of the mean squared distance over this process's valid pixels
        (units of the feature); ``inter_similarity`` is the mean cosine between the centers of two
        classes; ``classes`` counts the classes that took part, per image where centers are.
        """
        centers, present, valid = step.centers, step.present, step.valid
        squares = step.about_centers().squares
        unit = F.normalize(centers, dim=2)
        eye = torch.eye(self.num_classes, dtype=torch.bool, device=centers.device)
        pairs = present.unsqueeze(1) & present.unsqueeze(2) & ~eye
        cosines = torch.matmul(unit, unit.transpose(1, 2))
        return {
            "intra_distance": ((squares * valid).sum() / valid.sum().clamp(min=1)).sqrt(),
            "inter_similarity": (cosines * pairs).sum() / pairs.sum().clamp(min=1),
            "classes": present.sum() / present.shape[0],
        }

    def _statistics(self, inputs: RegularizerInput) -> tuple[ClassStatistics, Tensor, Tensor]:
        """Statistics of the feature's pixels, their one-hot labels ``(N, K, P)`` and labels ``(N, P)``."""
        feature = inputs.feature(self.feature_tap)
        if self.pool > 1:
            feature = F.avg_pool2d(feature, self.pool, ceil_mode=True)
        size = feature.shape[-2:]
        labels = inputs.labels_at(size).flatten(1)
        one_hot = inputs.one_hot_at(size, feature.dtype)
        if self.pool > 1:
            return class_statistics(feature.flatten(2), one_hot), one_hot, labels
        return inputs.class_statistics(self.feature_tap), one_hot, labels

    def _class_centers(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Centers ``(G, K, C)`` of Eq. 1, classes ``(G, K)`` that take part, and ``_Step.batch_means``."""
        if self.centers != "image":
            sums = all_reduce_sum(sums.sum(dim=0, keepdim=True))
            counts = all_reduce_sum_constant(counts.sum(dim=0, keepdim=True))
        centers, present = divide_by_counts(sums, counts), counts > 0
        batch_means = (centers[0].detach(), present[0])
        if self.ema is not None:
            seen = present | self.ema.seen
            centers, present = self.ema.blend(centers[0], present[0]).unsqueeze(0), seen
        if self.absent_classes == "zero":
            present = torch.ones_like(present)
        return centers, present, batch_means
