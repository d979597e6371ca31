"""RegionContrast: region centers against a memory of the training set (Hu et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import gather_rows, global_mean, rank
from regseg_d2.ops import region_contrast as ops
from regseg_d2.ops.class_statistics import class_sums, divide_by_counts
from regseg_d2.ops.labels import one_hot_labels
from regseg_d2.ops.sampling import compact
from regseg_d2.ops.stored_contrast import MIN_TEMPERATURE, Contrast
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import find_place
from regseg_d2.state.memory_bank import MemoryBank

BANK_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class _Samples(NamedTuple):
    """What regions are contrasted with; see ``ops.region_contrast``.

    Attributes:
        rows: ``(K, S, C)``.
        filled: ``(K, S)`` bool.
        own_slot: slot of the first image of this process in ``rows``; None where a region is not
            among its own samples.
    """

    rows: Tensor
    filled: Tensor
    own_slot: int | None


@REGULARIZER.register()
class RegionContrast(Regularizer):
    """Pulls the region centers of a class together over the training set, and those of others apart.

    A region is what an image shows of one class; its center is a mean of the pixels' features. The loss
    is Eq. 4. Its samples are constants, so that gradients flow through the regions of this step only.
    A region without a stored positive takes no part: on the first step, when the bank is empty, the
    loss is zero.

    Eq. 4 is the loss of one region. The paper does not say how regions add up; ``reduction`` does.

    Args:
        channels: channels C of the feature.
        num_classes: number of classes K.
        center: ``"dynamic"`` (Eq. 3), ``"gt_mean"`` or ``"predicted"`` (Eq. 2).
        bank_size: region centers kept of each class; 0 contrasts the regions of a batch, of all
            processes, with each other.
        bank_dtype: ``"float32"`` or ``"float16"``.
        temperature: tau of Eq. 4.
        reduction: ``"mean"`` over the regions of the batch of all processes, or ``"class_sum"``: the mean
            over the regions of each class, summed over classes (the published code sums over the classes of
            a GPU's batch, this over those of the batch of all processes).
        **common: arguments of :class:`Regularizer`.

    Raises:
        ConfigError: if an option is out of its range.
    """

    terms = ("contrast",)

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        center: str = "dynamic",
        bank_size: int = 1000,
        bank_dtype: str = "float32",
        temperature: float = 0.2,
        reduction: str = "mean",
        name: str = "region_contrast",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        self.check_choice("CENTER", center, ops.CENTERS)
        self.check_option("BANK_SIZE", bank_size, bank_size >= 0, "0 (no bank) or more")
        self.check_choice("BANK_DTYPE", bank_dtype, tuple(BANK_DTYPES))
        self.check_option(
            "TEMPERATURE", temperature, temperature >= MIN_TEMPERATURE, f"{MIN_TEMPERATURE} or more"
        )
        self.check_choice("REDUCTION", reduction, ops.REDUCTIONS)
        self.num_classes = num_classes
        self.center = center
        self.temperature = temperature
        self.reduction = reduction
        self.bank: MemoryBank | None = None
        if bank_size:
            self.bank = MemoryBank(num_classes, bank_size, channels, BANK_DTYPES[bank_dtype])
        # Unit centers (N, K, C) of the last forward, and which there are.
        self._regions: tuple[Tensor, Tensor] | None = None
        self._last: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.RegionContrast``."""
        section = cfg.MODEL.REGULARIZERS.RegionContrast
        place = find_place(cfg, network, "RegionContrast")
        return {
            **common_arguments(cfg, "RegionContrast"),
            "feature_tap": place.feature_tap,
            "logits_tap": place.logits_tap,
            "channels": place.channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "weights": {"contrast": section.WEIGHT},
            "center": section.CENTER,
            "bank_size": section.BANK_SIZE,
            "bank_dtype": section.BANK_DTYPE,
            "temperature": section.TEMPERATURE,
            "reduction": section.REDUCTION,
        }

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the loss of this process's regions, divided by numbers of regions of all processes."""
        centers, present = ops.unit_centers(self._centers(inputs))
        self._regions = (centers.detach(), present)
        samples = self._samples(*self._regions)
        items, valid = compact(present.flatten())
        classes = items % self.num_classes
        contrast = ops.region_contrast(
            centers.flatten(0, 1)[items],
            classes,
            samples.rows,
            samples.filled,
            self.temperature,
            None if samples.own_slot is None else samples.own_slot + items // self.num_classes,
        )
        counted = (valid & (contrast.num_positives > 0)).to(centers.dtype)
        self._last = self._describe(contrast, counted, present)
        if self.reduction == "mean":
            return {"contrast": global_mean((contrast.losses * counted).sum(), counted.sum())}
        sums, counts = ops.sums_by_class(contrast.losses, counted, classes, self.num_classes)
        return {"contrast": global_mean(sums, counts).sum()}

    def update_state(self, inputs: RegularizerInput) -> None:
        """Stores the region centers of all processes."""
        if self.bank is not None and self._regions is not None:
            centers, present = self._regions
            classes = torch.arange(self.num_classes, device=centers.device).repeat(len(centers))
            self.bank.push(centers.flatten(0, 1), classes, present.flatten())
        self._regions = None

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Regions, bank fill, and the mean cosines of a region with its positives and negatives.

        ``regions`` counts this process's region centers, ``contrasted`` those that had a positive; the
        similarities are means over these. ``bank_fill`` is the share of the bank's slots that hold a
        center.
        """
        values = dict(self._last)
        if self.bank is not None:
            values["bank_fill"] = self.bank.filled.double().mean()
        return values

    def _centers(self, inputs: RegularizerInput) -> Tensor:
        """Region centers of Eq. 2 or 3, ``(N, K, C)``, zeros for a class that an image does not show."""
        feature = inputs.feature(self.feature_tap)
        if self.center == "gt_mean":
            return divide_by_counts(*inputs.class_sums(self.feature_tap, self.num_classes))
        size = feature.shape[-2:]
        labels, predictions = inputs.labels_at(size), inputs.predictions(self.logits_tap, size)
        if self.center == "predicted":
            classes = torch.where(labels >= 0, predictions.classes, -1)
            one_hot = one_hot_labels(classes.flatten(1), self.num_classes, feature.dtype)
            return divide_by_counts(*class_sums(feature.flatten(2), one_hot))
        weights = ops.dynamic_weights(labels, predictions.classes, predictions.confidence)
        one_hot = inputs.one_hot_at(size, self.num_classes, feature.dtype)
        sums, _ = class_sums(feature.flatten(2), one_hot * weights.flatten(1).unsqueeze(1))
        return divide_by_counts(sums, one_hot.sum(dim=2))

    def _samples(self, centers: Tensor, present: Tensor) -> _Samples:
        if self.bank is not None:
            return _Samples(self.bank.rows, self.bank.filled, None)
        rows = gather_rows(centers).transpose(0, 1).contiguous()
        filled = gather_rows(present.long()).t() > 0
        return _Samples(rows, filled, rank() * len(centers))

    @staticmethod
    def _describe(contrast: Contrast, counted: Tensor, present: Tensor) -> dict[str, Tensor]:
        number = counted.sum()
        safe_number = number.clamp(min=1)
        return {
            "regions": present.sum(),
            "contrasted": number,
            "positive_similarity": (contrast.positive_similarity * counted).sum() / safe_number,
            "negative_similarity": (contrast.negative_similarity * counted).sum() / safe_number,
        }
