"""RegionContrast: region centers against a memory of the training set (Hu et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regseg_d2.common.distributed import gather_rows, global_mean, rank
from regseg_d2.ops import region_contrast as ops
from regseg_d2.ops.class_statistics import class_sums, divide_by_counts
from regseg_d2.ops.labels import one_hot_labels
from regseg_d2.ops.sampling import compact
from regseg_d2.ops.stored_contrast import MIN_TEMPERATURE, Contrast
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.state.memory_bank import ROW_DTYPES, MemoryBank


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


class _Step(NamedTuple):
    """What one forward computed, without gradient.

    Attributes:
        centers: unit centers ``(N, K, C)``.
        present: bool ``(N, K)``, which of them there are.
        shown: diagnostics.
    """

    centers: Tensor
    present: Tensor
    shown: dict[str, Tensor]


@REGULARIZER.register()
class RegionContrast(Regularizer):
    """Pulls the region centers of a class together over the training set, and those of others apart.

    A region is what an image shows of one class; its center is a mean of the pixels' features. The loss
    ``contrast`` is Eq. 4, its weight beta of Eq. 5 (sane: 0.01 to 1). Its samples are constants, so that
    gradients flow through the regions of this step only. A region without a stored positive takes no part: on
    the first step, when the bank is empty, the loss is zero.

    Eq. 4 is the loss of one region. The paper does not say how regions add up; ``reduction`` does.

    Defaults are the paper's, unless something else is said; its place is the classifier's input (F of section
    3.2.1).

    Args:
        num_classes: number of classes K.
        channels: channels C of the feature; needed for a bank.
        center: R_i, the center of the region of class i in an image (Table 2). ``"dynamic"``: Eq. 3
            ("Weighted EP + HP"). ``"gt_mean"``: mean over the pixels labelled i ("EP + HP"). ``"predicted"``:
            mean over the pixels predicted as i, Eq. 2 ("Direct Average"; the published code builds its
            centers from predictions).
        bank_size: region centers kept of each class, |M_i|. The paper keeps as many as there are training
            images (D: 2975 for Cityscapes) and compares 0, 1000 and 2000 in Table 3; 1000 here, as it suits
            every data set. 0: no bank, the other regions of the batch (of all processes) are the samples
            ("intra-image", Table 1). Memory: classes x size x channels x 4 bytes on each process, which is 3
            GB for 150 classes, 10,000 regions and 512 channels. Sane: 100 to the number of training images.
        bank_dtype: type that stored centers are kept in: ``"float32"``, or ``"float16"``, which halves the
            memory.
        temperature: tau of Eq. 4; the paper gives no value, this is the published code's. Sane: 0.05 to 1; at
            least 0.025.
        reduction: how the losses of regions add up, about which the paper is silent. ``"mean"``: over all
            regions of the batch of all processes. ``"class_sum"``: over the regions of each class, then
            summed over the classes (the published code sums over those of a GPU's batch); larger about by the
            number of classes in the batch.
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"contrast": 0.1}

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        center: str = "dynamic",
        bank_size: int = 1000,
        bank_dtype: str = "float32",
        temperature: float = 0.2,
        reduction: str = "mean",
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        self.check_choice("center", center, ops.CENTERS)
        self.check_option("bank_size", bank_size, bank_size >= 0, "0 (no bank) or more")
        self.check_choice("bank_dtype", bank_dtype, tuple(ROW_DTYPES))
        self.check_option(
            "temperature", temperature, temperature >= MIN_TEMPERATURE, f"{MIN_TEMPERATURE} or more"
        )
        self.check_choice("reduction", reduction, ops.REDUCTIONS)
        self.center = center
        self.bank_size = bank_size
        self.bank_dtype = bank_dtype
        self.temperature = temperature
        self.reduction = reduction
        self.reads_logits = center != "gt_mean"
        self.needs_channels = bank_size > 0
        self.bank: MemoryBank | None = None
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the bank, where there is one."""
        if self.bank_size:
            dtype = ROW_DTYPES[self.bank_dtype]
            self.bank = MemoryBank(self.num_classes, self.bank_size, channels, dtype)

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes the loss of this process's regions, divided by numbers of regions of all processes."""
        centers, present = ops.unit_centers(self._centers(inputs))
        samples = self._samples(centers.detach(), present)
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
        step = _Step(centers.detach(), present, self._describe(contrast, counted, present))
        if self.reduction == "mean":
            return {"contrast": global_mean((contrast.losses * counted).sum(), counted.sum())}, step
        sums, counts = ops.sums_by_class(contrast.losses, counted, classes, self.num_classes)
        return {"contrast": global_mean(sums, counts).sum()}, step

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Stores the region centers of all processes."""
        if self.bank is not None:
            centers = step.centers
            classes = torch.arange(self.num_classes, device=centers.device).repeat(len(centers))
            self.bank.push(centers.flatten(0, 1), classes, step.present.flatten())

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """Regions, bank fill, and the mean cosines of a region with its positives and negatives.

        ``regions`` counts this process's region centers, ``contrasted`` those that had a positive; the
        similarities are means over these. ``bank_fill`` is the share of the bank's slots that hold a
        center.
        """
        values = dict(step.shown)
        if self.bank is not None:
            values["bank_fill"] = self.bank.filled.double().mean()
        return values

    def _centers(self, inputs: RegularizerInput) -> Tensor:
        """Region centers of Eq. 2 or 3, ``(N, K, C)``, zeros for a class that an image does not show."""
        feature = inputs.feature(self.feature_tap)
        if self.center == "gt_mean":
            return divide_by_counts(*inputs.class_sums(self.feature_tap))
        size = feature.shape[-2:]
        labels, predictions = inputs.labels_at(size), inputs.predictions(self.logits_tap, size)
        if self.center == "predicted":
            classes = torch.where(labels >= 0, predictions.classes, -1)
            one_hot = one_hot_labels(classes.flatten(1), self.num_classes, feature.dtype)
            return divide_by_counts(*class_sums(feature.flatten(2), one_hot))
        weights = ops.dynamic_weights(labels, predictions.classes, predictions.confidence)
        one_hot = inputs.one_hot_at(size, feature.dtype)
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
