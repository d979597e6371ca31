"""RCH: representation calibration head (Wang et al., AAAI 2022)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_d2.common.distributed import all_reduce_sum, all_reduce_sum_constant, global_mean
from regseg_d2.ops import rch as ops
from regseg_d2.ops.class_statistics import class_sums, divide_by_counts
from regseg_d2.ops.sampling import compact
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
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
    """What one forward computed, without gradient.

    Attributes:
        batch_means: means ``(K, D)`` of this batch's pixels, and which classes have one; None for learned
            prototypes.
        labels: ``(N, P)``, -1 for void.
        sets: TP, FN and FP pixels.
        class_cosines: ``(N, K, P)`` cosines to the prototypes.
        known: ``(K,)`` bool, classes with a prototype.
        phi: FN compensation, ``(N, P)`` or a zero.
        psi: FP penalty, likewise.
    """

    batch_means: tuple[Tensor, Tensor] | None
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

    Defaults are the paper's, unless something else is said. Its place is the encoder's output: all stages
    where the head has them side by side, else the last one; the published code takes the classifier's input.
    The weight is lambda of Eq. 9; 0.1 to 0.4 do alike in Figure 4. The paper has no RCH while SegFormer warms
    up.

    Args:
        num_classes: number of classes K.
        channels: channels of the feature.
        embedding_channels: D, channels of the embedding E, made by a 1x1 convolution and norm that exist in
            training only. The paper gives no number, the published code keeps the head's (512 for OCRNet).
            Sane: 64 to 512.
        norm: makes the norm of the embedding.
        ema_decay: rho of Eq. 4: share of the old prototype in the new one. 0.8 and 0.9 are best in Figure 4.
        temperature: tau of Eq. 8; 0.25 to 0.5 in Figure 4. Sane: 0.1 to 1.
        prototypes: what a prototype is (Table 1). ``"tp"``: the moving average of the correctly classified
            pixels. ``"gt"``: that of all pixels of the class. ``"learned"``: a parameter.
        fp_penalty: use psi (Eq. 6), which pushes a pixel away from those that were taken for its class (Table
            1, column FP); without, it is 0 in Eq. 8.
        fn_compensation: use phi (Eq. 7), which pulls a pixel to the missed ones of its class (Table 1, column
            FN); without, it is 0 in Eq. 8.
        errors: the FN and FP pixels of its class that psi and phi compare a pixel with are those of its own
            ``"image"`` (the paper's "pixels of the input image") or of the ``"batch"`` of all processes. The
            published code pools the images of a GPU.
        calibration_scale: factor of both terms in Eq. 8. The published code's numbers amount to 0.25. Sane: 0
            to 1.
        detach_prototypes: no gradient through the prototypes (published code); False: through this batch's
            share of Eq. 4.
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"metric": 0.1}
    reads_logits = True
    needs_channels = True
    paper_place = "encoder output"
    config_keys = {"embedding_channels": "CHANNELS"}

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        embedding_channels: int = 256,
        norm: NormFactory = nn.BatchNorm2d,
        ema_decay: float = 0.9,
        temperature: float = 0.5,
        prototypes: str = "tp",
        fp_penalty: bool = True,
        fn_compensation: bool = True,
        errors: str = "image",
        calibration_scale: float = 1.0,
        detach_prototypes: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        learned = prototypes == "learned"
        self.check_option("embedding_channels", embedding_channels, embedding_channels >= 1, "1 or more")
        self.check_option("ema_decay", ema_decay, 0.0 <= ema_decay < 1.0, "a number in [0, 1)")
        self.check_positive("temperature", temperature)
        self.check_choice("prototypes", prototypes, PROTOTYPES)
        self.check_choice("errors", errors, ops.ERRORS)
        self.check_option("calibration_scale", calibration_scale, calibration_scale >= 0.0, "0 or more")
        moving = not (learned and detach_prototypes)
        self.check_option("detach_prototypes", detach_prototypes, moving, "False with learned prototypes")
        self.embedding_channels = embedding_channels
        self.norm = norm
        self.temperature = temperature
        self.prototypes = prototypes
        self.fp_penalty = fp_penalty
        self.fn_compensation = fn_compensation
        self.errors = errors
        self.calibration_scale = calibration_scale
        self.detach_prototypes = detach_prototypes
        self.register_module("projection", None)
        self.ema = None if learned else EmaCenters(num_classes, embedding_channels, ema_decay)
        self.learned: nn.Parameter | None = None
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the projection, and prototypes that are learned."""
        self.projection = LinearProjection(channels, self.embedding_channels, self.norm)
        if self.prototypes == "learned":
            # About unit length, at which a step of the optimizer turns a prototype as it should.
            start = torch.randn(self.num_classes, self.embedding_channels) / self.embedding_channels**0.5
            self.learned = nn.Parameter(start)

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes the metric loss; see the class and ``ops/rch.py``."""
        batch = self._batch(inputs)
        counts = all_reduce_sum_constant(batch.counts.sum(dim=1))
        # FN and FP pixels matter to pixels of their class alone: only classes in the labels need sums.
        rows, _ = compact(counts[0] + counts[1] > 0)
        errors, inverse_norms = self._errors(batch, counts, rows)
        prototypes, known, batch_means = self._class_prototypes(batch, counts, rows)
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
        step = _Step(
            batch_means, batch.labels, batch.sets, class_cosines.detach(), known, phi.detach(), psi.detach()
        )
        return {"metric": global_mean(losses.sum(), (batch.labels >= 0).sum())}, step

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Moves the prototypes (Eq. 4)."""
        if self.ema is not None and step.batch_means is not None:
            self.ema.update(*step.batch_means)

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """How many pixels are wrong, and how near pixels are to prototypes; of this process's pixels.

        ``true_positives`` and ``misclassified`` are shares of the valid pixels (each misclassified pixel
        is a false negative of one class and a false positive of another one). ``classes`` counts the
        classes with a prototype. ``positive_similarity`` and ``negative_similarity`` are the mean cosines
        to the prototype of the pixel's class and to those of the others. ``fn_compensation`` and
        ``fp_penalty`` are the means of phi and psi over valid pixels.
        """
        _, labels, sets, class_cosines, known, phi, psi = step
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

    def _class_prototypes(
        self, batch: _Batch, counts: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Prototypes ``(K, D)`` of Eq. 4, who has one, and ``_Step.batch_means``; see :meth:`_errors`."""
        if self.ema is None:
            assert self.learned is not None
            return self.learned.to(batch.x.dtype), torch.ones_like(counts[0], dtype=torch.bool), None
        is_tp = self.prototypes == "tp"
        members = batch.sets.true_positive if is_tp else batch.labels
        numbers = counts[0] if is_tp else counts[0] + counts[1]
        source = batch.x.detach() if self.detach_prototypes else batch.x
        sums, _ = class_sums(source, ops.membership(members, rows, source.dtype))
        means = divide_by_counts(self._sum_over_processes(sums.sum(dim=0), rows), numbers)
        present = numbers > 0
        return self.ema.blend(means, present), present | self.ema.seen, (means.detach(), present)

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
