"""RCH: representation calibration head (Wang et al., AAAI 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import get_norm
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import all_reduce_sum, all_reduce_sum_constant, global_mean
from regseg_d2.ops import rch as ops
from regseg_d2.ops.class_statistics import class_sums, divide_by_counts
from regseg_d2.ops.sampling import compact
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import encoder_output_tap, find_place
from regseg_d2.regularizers.projection import LinearProjection, NormFactory
from regseg_d2.state.ema_centers import EmaCenters

PROTOTYPES = ("tp", "gt", "learned")


class _Batch(NamedTuple):
    """What the calibration works on, of this process's images.

    Attributes:
        x: ``(N, D, P)`` embeddings.
        labels: ``(N, P)``, -1 for void.
        probability: ``(N, P)`` softmax probability of the pixel's class, a constant.
        sets: TP, FN and FP pixels.
        counts: long ``(3, N, K)``, their sizes in each image.
    """

    x: Tensor
    labels: Tensor
    probability: Tensor
    sets: ops.PixelSets
    counts: Tensor


class _Errors(NamedTuple):
    """The FN and FP pixels that the pixels of each image are compared with.

    Attributes:
        means: ``(N, 2R, D)`` mean unit embeddings of the FN pixels of R classes, then of their FP pixels; the
            mean of no pixel is zero.
        present: bool ``(2, N, K)``, classes with an FN and with an FP pixel.
    """

    means: Tensor
    present: Tensor


class _Step(NamedTuple):
    """What the last forward computed, without gradient; for diagnostics.

    Attributes:
        labels: ``(N, P)``, -1 for void.
        sets: TP, FN and FP pixels.
        class_cosines: ``(N, K, P)`` cosines to the prototypes.
        known: ``(K,)`` bool, classes with a prototype.
        phi: FN compensation, ``(N, P)`` or a zero.
        psi: FP penalty, likewise.
    """

    labels: Tensor
    sets: ops.PixelSets
    class_cosines: Tensor
    known: Tensor
    phi: Tensor
    psi: Tensor


@REGULARIZER.register()
class RCH(Regularizer):
    """Clusters pixels around class prototypes, misclassified ones the more; nothing is left at inference.

    One loss, ``metric`` (Eq. 8), the mean over all valid pixels of the batch. A prototype is the moving
    average of the embeddings of a class's correctly classified pixels, over all processes. A class takes
    part from the first step on that gives it a prototype; a pixel of a class without one has loss 0.

    The FN and FP pixels that a pixel meets in phi and psi are those of its own image (section "Image
    Decoupling Module": "the pixels of the input image"), or of the batch of all processes.

    Gradients flow through this batch's share of the prototypes, and through both sides of the cosines in
    phi and psi; the probability in Eq. 8 is a constant.

    Args:
        in_channels: channels of the feature.
        channels: channels D of the embedding.
        num_classes: number of classes K.
        norm: makes the norm of the embedding.
        ema_decay: rho of Eq. 4.
        temperature: tau of Eq. 8.
        prototypes: ``"tp"``, ``"gt"`` (of all pixels of a class) or ``"learned"`` (Table 1).
        fp_penalty: use psi (Eq. 6); without, it is 0 in Eq. 8.
        fn_compensation: use phi (Eq. 7); without, it is 0 in Eq. 8.
        errors: whose FN and FP pixels phi and psi are means over: ``"image"`` or ``"batch"``.
        calibration_scale: factor of phi and psi; 1 in the paper, 0.25 in the published code.
        detach_prototypes: prototypes are constants (published code).
        **common: arguments of :class:`Regularizer`.

    Raises:
        ConfigError: if an option is out of its range.
    """

    terms = ("metric",)

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_classes: int,
        norm: NormFactory,
        ema_decay: float = 0.9,
        temperature: float = 0.5,
        prototypes: str = "tp",
        fp_penalty: bool = True,
        fn_compensation: bool = True,
        errors: str = "image",
        calibration_scale: float = 1.0,
        detach_prototypes: bool = False,
        name: str = "rch",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        learned = prototypes == "learned"
        self.check_option("CHANNELS", channels, channels >= 1, "1 or more")
        self.check_option("EMA_DECAY", ema_decay, 0.0 <= ema_decay < 1.0, "a number in [0, 1)")
        self.check_positive("TEMPERATURE", temperature)
        self.check_choice("PROTOTYPES", prototypes, PROTOTYPES)
        self.check_choice("ERRORS", errors, ops.ERRORS)
        self.check_option("CALIBRATION_SCALE", calibration_scale, calibration_scale >= 0.0, "0 or more")
        moving = not (learned and detach_prototypes)
        self.check_option(
            "DETACH_PROTOTYPES", detach_prototypes, moving, "False where PROTOTYPES is 'learned'"
        )
        self.num_classes = num_classes
        self.temperature = temperature
        self.prototypes = prototypes
        self.fp_penalty = fp_penalty
        self.fn_compensation = fn_compensation
        self.errors = errors
        self.calibration_scale = calibration_scale
        self.detach_prototypes = detach_prototypes
        self.projection = LinearProjection(in_channels, channels, norm)
        self.ema = None if learned else EmaCenters(num_classes, channels, ema_decay)
        self.learned: nn.Parameter | None = None
        if learned:
            # About unit length, at which a step of the optimizer turns a prototype as it should.
            self.learned = nn.Parameter(torch.randn(num_classes, channels) / channels**0.5)
        self._batch_means: tuple[Tensor, Tensor] | None = None
        self._step: _Step | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.RCH``."""
        rch = cfg.MODEL.REGULARIZERS.RCH
        at_encoder = rch.CLASSIFIER == rch.FEATURES == "auto"
        place = find_place(cfg, network, "RCH", paper_tap=encoder_output_tap(network) if at_encoder else "")
        return {
            **common_arguments(cfg, "RCH"),
            "feature_tap": place.feature_tap,
            "logits_tap": place.logits_tap,
            "in_channels": place.channels,
            "channels": rch.CHANNELS,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "norm": partial(get_norm, cfg.MODEL.SEM_SEG_HEAD.NORM),
            "weights": {"metric": rch.WEIGHT},
            "ema_decay": rch.EMA_DECAY,
            "temperature": rch.TEMPERATURE,
            "prototypes": rch.PROTOTYPES,
            "fp_penalty": rch.FP_PENALTY,
            "fn_compensation": rch.FN_COMPENSATION,
            "errors": rch.ERRORS,
            "calibration_scale": rch.CALIBRATION_SCALE,
            "detach_prototypes": rch.DETACH_PROTOTYPES,
        }

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the metric loss; see the class and ``ops/rch.py``."""
        batch = self._batch(inputs)
        counts = all_reduce_sum_constant(batch.counts.sum(dim=1))
        # FN and FP pixels matter to pixels of their class alone: only classes in the labels need sums.
        rows, _ = compact(counts[0] + counts[1] > 0)
        errors, inverse_norms = self._errors(batch, counts, rows)
        prototypes, known = self._class_prototypes(batch, counts, rows)
        directions = F.normalize(prototypes, dim=1).expand(len(batch.x), -1, -1)
        cosines = ops.cosines(batch.x, inverse_norms, torch.cat([directions, errors.means], dim=1))
        class_cosines, error_cosines = cosines.split([self.num_classes, 2 * len(rows)], dim=1)
        phi, psi = self._calibration_terms(batch, error_cosines, errors.present, rows)
        losses = ops.metric_losses(
            class_cosines,
            known,
            batch.labels,
            phi,
            psi,
            batch.probability,
            self.temperature,
            self.calibration_scale,
        )
        self._step = _Step(
            batch.labels, batch.sets, class_cosines.detach(), known, phi.detach(), psi.detach()
        )
        return {"metric": global_mean(losses.sum(), (batch.labels >= 0).sum())}

    def update_state(self, inputs: RegularizerInput) -> None:
        """Moves the prototypes (Eq. 4)."""
        if self.ema is not None and self._batch_means is not None:
            self.ema.update(*self._batch_means)
        self._batch_means = None

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """How many pixels are wrong, and how near pixels are to prototypes; of this process's pixels.

        ``true_positives`` and ``misclassified`` are shares of the valid pixels (each misclassified pixel
        is a false negative of one class and a false positive of another one). ``classes`` counts the
        classes with a prototype. ``positive_similarity`` and ``negative_similarity`` are the mean cosines
        to the prototype of the pixel's class and to those of the others. ``fn_compensation`` and
        ``fp_penalty`` are the means of phi and psi over valid pixels.
        """
        assert self._step is not None
        labels, sets, class_cosines, known, phi, psi = self._step
        valid = labels >= 0
        num_valid = valid.sum().clamp(min=1)
        safe_labels = labels.clamp(min=0)
        takes_part = valid & known[safe_labels]
        num_pixels = takes_part.sum()
        own = class_cosines.gather(1, safe_labels.unsqueeze(1)).squeeze(1)
        all_known = torch.einsum("k,nkp->np", known.to(own.dtype), class_cosines)
        num_pairs = num_pixels * (known.sum() - 1)
        return {
            "true_positives": (sets.true_positive >= 0).sum() / num_valid,
            "misclassified": (sets.false_negative >= 0).sum() / num_valid,
            "classes": known.sum(),
            "positive_similarity": (own * takes_part).sum() / num_pixels.clamp(min=1),
            "negative_similarity": ((all_known - own) * takes_part).sum() / num_pairs.clamp(min=1),
            "fn_compensation": (phi * valid).sum() / num_valid,
            "fp_penalty": (psi * valid).sum() / num_valid,
        }

    def _batch(self, inputs: RegularizerInput) -> _Batch:
        embeddings = self.projection(inputs.feature(self.feature_tap))
        size = embeddings.shape[-2:]
        labels = inputs.labels_at(size)
        # A label beyond the classes is as good as void.
        labels = torch.where(labels < self.num_classes, labels, -1)
        predictions = inputs.predictions(self.logits_tap, size)
        labels, predicted = labels.flatten(1), predictions.classes.flatten(1)
        probability = predictions.probability_of(labels.view(-1, *size)).flatten(1)
        sets = ops.decouple(labels, predicted)
        return _Batch(
            embeddings.flatten(2), labels, probability, sets, ops.class_counts(sets, self.num_classes)
        )

    def _errors(self, batch: _Batch, counts: Tensor, rows: Tensor) -> tuple[_Errors, Tensor]:
        """FN and FP pixels of each image or of the whole batch, and one over the length of each pixel.

        Args:
            batch: this process's pixels.
            counts: ``(3, K)`` sizes of the sets, of all processes.
            rows: ``(R,)`` classes in the labels of any process.
        """
        x, sets = batch.x, batch.sets
        members = torch.cat(
            [
                ops.membership(classes, rows, x.dtype)
                for classes in (sets.false_negative, sets.false_positive)
            ],
            dim=1,
        )
        sums, inverse_norms = ops.unit_class_sums(x, members)
        if self.errors == "image":
            counts = batch.counts[1:]
            means = divide_by_counts(sums, counts[..., rows].transpose(0, 1).flatten(1))
        else:
            counts = counts[1:].unsqueeze(1).expand(-1, len(x), -1)
            totals = self._sum_over_processes(sums.sum(dim=0).unflatten(0, (2, len(rows))), rows)
            means = divide_by_counts(totals, counts[:, 0])[:, rows].flatten(0, 1).expand(len(x), -1, -1)
        return _Errors(means, counts > 0), inverse_norms

    def _class_prototypes(self, batch: _Batch, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prototypes ``(K, D)`` of Eq. 4, and which classes have one; see :meth:`_errors`."""
        if self.ema is None:
            assert self.learned is not None
            return self.learned.to(batch.x.dtype), torch.ones_like(counts[0], dtype=torch.bool)
        is_tp = self.prototypes == "tp"
        members = batch.sets.true_positive if is_tp else batch.labels
        numbers = counts[0] if is_tp else counts[0] + counts[1]
        source = batch.x.detach() if self.detach_prototypes else batch.x
        sums, _ = class_sums(source, ops.membership(members, rows, source.dtype))
        means = divide_by_counts(self._sum_over_processes(sums.sum(dim=0), rows), numbers)
        self._batch_means = (means.detach(), numbers > 0)
        return self.ema.blend(means, numbers > 0), (numbers > 0) | self.ema.seen

    def _sum_over_processes(self, sums: Tensor, rows: Tensor) -> Tensor:
        """Sums ``(..., R, D)`` of some classes over all processes: ``(..., K, D)``, zero for the others."""
        # Of one size on all processes, whatever their labels are.
        shape = (*sums.shape[:-2], self.num_classes, sums.shape[-1])
        return all_reduce_sum(sums.new_zeros(shape).index_copy(-2, rows, sums))

    def _calibration_terms(
        self, batch: _Batch, error_cosines: Tensor, present: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        members = ops.membership(batch.labels, rows, error_cosines.dtype)
        fn, fp = error_cosines.unflatten(1, (2, len(rows))).unbind(dim=1)
        labels = batch.labels.clamp(min=0)
        has_fn, has_fp = (own.gather(1, labels) for own in present)
        return ops.calibration_terms(
            ops.own_values(fn, members) if self.fn_compensation else None,
            ops.own_values(fp, members) if self.fp_penalty else None,
            has_fn,
            has_fp,
        )
