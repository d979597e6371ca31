"""Pixel classification losses that are finite on an all-void batch and exact over processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regseg_d2.common.distributed import global_mean
from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.layers import check_head_key
from regseg_d2.ops.upsampled_cross_entropy import upsampled_cross_entropy, upsampled_pixel_losses

LOSS_TYPES = ("cross_entropy", "ohem")
MIN_KEPT_PER = ("image", "process")


class SegmentationLoss(nn.Module):
    """Cross entropy over the valid pixels of the batch of all processes, or over the hardest of them.

    Weighted sums are divided by the sum of the weights over all processes, so that W processes of
    batch B have the gradients of one process of batch W x B. (OHEM looks for its hardest pixels in each
    process's own batch, all images of it together.)

    Args:
        num_classes: number of classes K.
        ignore_value: label of void pixels, which do not count.
        loss_type: ``"cross_entropy"`` or ``"ohem"``: only pixels whose true class has a probability
            below ``ohem_threshold``, and at least the hardest of ``ohem_min_kept``. Void pixels are never
            ranked and never averaged (Detectron2's ``DeepLabCE`` does both).
        class_weights: one weight a class, or empty.
        ohem_threshold: probability in (0, 1].
        ohem_min_kept: pixels that are kept at least.
        ohem_min_kept_per: ``"image"``: so many times the number of images of the process's batch (as
            mmsegmentation and RCH's published code count), or ``"process"``: so many of its whole batch (as
            RegionContrast's published code counts).

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_value: int,
        loss_type: str = "cross_entropy",
        class_weights: Sequence[float] = (),
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        ohem_min_kept_per: str = "image",
    ) -> None:
        super().__init__()
        check_head_key("LOSS_TYPE", loss_type, loss_type in LOSS_TYPES, f"one of {LOSS_TYPES}")
        if len(class_weights) not in (0, num_classes) or any(not weight >= 0 for weight in class_weights):
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS has {len(class_weights)} numbers {list(class_weights)}; "
                f"expected none or {num_classes} numbers >= 0, one a class"
            )
        check_head_key("OHEM_THRESHOLD", ohem_threshold, 0 < ohem_threshold <= 1, "0 < value <= 1")
        known = f"one of {MIN_KEPT_PER}"
        check_head_key("OHEM_MIN_KEPT_PER", ohem_min_kept_per, ohem_min_kept_per in MIN_KEPT_PER, known)
        self.ignore_value = ignore_value
        self.loss_type = loss_type
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.ohem_min_kept_per = ohem_min_kept_per
        weights = torch.tensor(class_weights, dtype=torch.float32) if len(class_weights) else None
        self.register_buffer("class_weights", weights, persistent=False)

    def set_class_weights(self, class_weights: Sequence[float], device: torch.device) -> None:
        """Weighs the classes from now on, one weight a class."""
        self.class_weights = torch.tensor(class_weights, dtype=torch.float32, device=device)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: ``(N, K, h, w)``; upsampled bilinearly to the labels' size, in float32 or better.
            targets: class ids ``(N, H, W)``.

        Returns:
            A scalar; a zero that is attached to the graph if every pixel is void. It has no second
            derivative.

        Raises:
            IndexError: if a label is neither a class nor void.
        """
        pixel_weights = targets != self.ignore_value
        if self.loss_type == "ohem":
            # Upsampling twice is cheaper than keeping what it takes to weigh the gradients afterwards.
            losses = upsampled_pixel_losses(logits, targets, self.ignore_value)
            pixel_weights = pixel_weights & self._is_hard(losses)
        if self.class_weights is not None:
            # Void labels may lie outside the table; their weight is zero already.
            table = self.class_weights.to(torch.promote_types(logits.dtype, torch.float32))
            pixel_weights = pixel_weights * table[targets.clamp(0, len(table) - 1)]
        total = upsampled_cross_entropy(logits, targets, pixel_weights, self.ignore_value)
        return global_mean(total, pixel_weights.sum())

    def _is_hard(self, losses: Tensor) -> Tensor:
        num_shares = len(losses) if self.ohem_min_kept_per == "image" else 1
        kept = min(self.ohem_min_kept * num_shares, losses.numel())
        # A probability below the threshold is a loss above its negative logarithm. Void pixels have a
        # loss of zero, the lowest there is, so they rank last.
        is_hard = losses > -math.log(self.ohem_threshold)
        if kept > 0:
            is_hard = is_hard | (losses >= losses.flatten().topk(kept).values[-1])
        return is_hard
