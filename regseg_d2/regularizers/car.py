"""CAR: class-aware regularizations (Huang et al., ECCV 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import all_reduce_sum, all_reduce_sum_constant
from regseg_d2.ops import car as ops
from regseg_d2.ops.class_statistics import ClassStatistics, class_statistics, divide_by_counts
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import find_place
from regseg_d2.regularizers.taps import has_module
from regseg_d2.state.ema_centers import EmaCenters

CENTERS = ("batch", "image", "ema")
ABSENT_CLASSES = ("exclude", "zero")
LINEAR_CONV_TAP = "sem_seg_head.projection.linear:out"


@REGULARIZER.register()
class CAR(Regularizer):
    """Three losses on class centers and pixels; nothing of it is left at inference.

    - ``intra_c2p`` (Eq. 2) pulls pixels to the center of their class,
    - ``inter_c2c`` (Eq. 7) pushes the centers of classes apart,
    - ``inter_c2p`` (Eq. 14) pushes pixels away from the centers of other classes.

    Args:
        feature_tap: name of the tap of the feature X.
        channels: channels of that feature.
        num_classes: number of classes K.
        weights: weight of each loss, by the names above.
        centers: ``"batch"``, ``"image"`` or ``"ema"`` (Eq. 1; Tables 4 and 5). With ``"ema"`` the
            gradient of ``inter_c2c`` flows through this batch's share of the average.
        ema_decay: share of the old center in the moving average.
        eps_c2c: epsilon_0 of Eq. 6.
        eps_c2p: epsilon_1 of Eq. 13.
        scale_c2p: divide the products of Eq. 8 to 10 by ``sqrt(C)`` (published code).
        absent_classes: ``"exclude"`` or ``"zero"`` (published code).
        detach_centers: centers are constants in the pixel losses, and so is the second operand of
            Eq. 4 (published code).
        reduction: ``"mse"`` or ``"squared_mean"`` (published code).
        pool: factor of the average pooling before the losses.
        **common: arguments of :class:`Regularizer`.

    Raises:
        ConfigError: if an option has an unknown value.
    """

    terms = ("intra_c2p", "inter_c2c", "inter_c2p")

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        centers: str = "batch",
        ema_decay: float = 0.9,
        eps_c2c: float = 0.5,
        eps_c2p: float = 0.25,
        scale_c2p: bool = True,
        absent_classes: str = "exclude",
        detach_centers: bool = True,
        reduction: str = "mse",
        pool: int = 1,
        name: str = "car",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        self.check_choice("CENTERS", centers, CENTERS)
        self.check_choice("ABSENT_CLASSES", absent_classes, ABSENT_CLASSES)
        self.check_choice("REDUCTION", reduction, ops.REDUCTIONS)
        self.check_option("POOL", pool, pool >= 1, "1 or more")
        self.num_classes = num_classes
        self.centers = centers
        self.eps_c2c = eps_c2c
        self.eps_c2p = eps_c2p
        self.scale_c2p = scale_c2p
        self.absent_classes = absent_classes
        self.detach_centers = detach_centers
        self.reduction = reduction
        self.pool = pool
        self.ema = EmaCenters(num_classes, channels, ema_decay) if centers == "ema" else None
        self._batch_means: tuple[Tensor, Tensor] | None = None
        self._last: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.CAR``."""
        car = cfg.MODEL.REGULARIZERS.CAR
        linear_conv = LINEAR_CONV_TAP if has_module(network, LINEAR_CONV_TAP.partition(":")[0]) else ""
        place = find_place(
            cfg, network, "CAR", paper_tap=linear_conv if car.CLASSIFIER == "auto" else "", reads_logits=False
        )
        return {
            **common_arguments(cfg, "CAR"),
            "feature_tap": place.feature_tap,
            "channels": place.channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "weights": {
                "intra_c2p": car.WEIGHT * car.INTRA_C2P_WEIGHT,
                "inter_c2c": car.WEIGHT * car.INTER_C2C_WEIGHT,
                "inter_c2p": car.WEIGHT * car.INTER_C2P_WEIGHT,
            },
            "centers": car.CENTERS,
            "ema_decay": car.EMA_DECAY,
            "eps_c2c": car.EPS_C2C,
            "eps_c2p": car.EPS_C2P,
            "scale_c2p": car.SCALE_C2P,
            "absent_classes": car.ABSENT_CLASSES,
            "detach_centers": car.DETACH_CENTERS,
            "reduction": car.REDUCTION,
            "pool": car.POOL,
        }

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the three losses; see the class and ``ops/car.py``."""
        statistics, one_hot, labels = self._statistics(inputs)
        x, _, sums, counts = statistics
        centers, present = self._class_centers(sums, counts)
        pixel_centers = centers.detach() if self.detach_centers else centers
        about_centers = ops.deviations(x, centers, present, labels)
        losses = {}
        if "intra_c2p" in self.weights:
            losses["intra_c2p"] = ops.intra_c2p_loss(
                statistics, pixel_centers, one_hot, about_centers, self.reduction
            )
        if "inter_c2c" in self.weights:
            losses["inter_c2c"] = ops.inter_c2c_loss(
                centers, present, self.eps_c2c, self.reduction, self.detach_centers
            )
        if "inter_c2p" in self.weights:
            losses["inter_c2p"] = ops.inter_c2p_loss(
                x,
                pixel_centers,
                present,
                one_hot,
                about_centers,
                self.eps_c2p,
                self.scale_c2p,
                self.reduction,
            )
        self._last = {
            "centers": centers.detach(),
            "present": present,
            **{f"loss_{term}": loss.detach() for term, loss in losses.items()},
        }
        return losses

    def update_state(self, inputs: RegularizerInput) -> None:
        """Moves the averages (``CENTERS: ema``)."""
        if self.ema is not None and self._batch_means is not None:
            self.ema.update(*self._batch_means)
        self._batch_means = None

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Unweighted losses, mean distance of a pixel to its center, mean similarity of two centers.

        ``intra_distance`` is the root of the mean squared distance over this process's valid pixels
        (units of the feature); ``inter_similarity`` is the mean cosine between the centers of two
        classes; ``classes`` counts the classes that took part, per image where centers are.
        """
        centers, present = self._last["centers"], self._last["present"]
        statistics, one_hot, _ = self._statistics(inputs)
        x = statistics.features
        valid = one_hot.sum(dim=1)
        squared = ops.pixel_center_difference(x, centers, one_hot).square().sum(dim=1)
        unit = F.normalize(centers, dim=2)
        eye = torch.eye(self.num_classes, dtype=torch.bool, device=x.device)
        pairs = present.unsqueeze(1) & present.unsqueeze(2) & ~eye
        cosines = torch.matmul(unit, unit.transpose(1, 2))
        return {
            **{key: value for key, value in self._last.items() if key.startswith("loss_")},
            "intra_distance": ((squared * valid).sum() / valid.sum().clamp(min=1)).sqrt(),
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
        one_hot = inputs.one_hot_at(size, self.num_classes, feature.dtype)
        if self.pool > 1:
            return class_statistics(feature.flatten(2), one_hot), one_hot, labels
        return inputs.class_statistics(self.feature_tap, self.num_classes), one_hot, labels

    def _class_centers(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Centers ``(G, K, C)`` of Eq. 1 and the classes ``(G, K)`` that take part."""
        if self.centers != "image":
            sums = all_reduce_sum(sums.sum(dim=0, keepdim=True))
            counts = all_reduce_sum_constant(counts.sum(dim=0, keepdim=True))
        centers, present = divide_by_counts(sums, counts), counts > 0
        if self.ema is not None:
            self._batch_means = (centers[0].detach(), present[0])
            seen = present | self.ema.seen
            centers, present = self.ema.blend(centers[0], present[0]).unsqueeze(0), seen
        if self.absent_classes == "zero":
            present = torch.ones_like(present)
        return centers, present
