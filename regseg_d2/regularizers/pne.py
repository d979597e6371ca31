"""PNE: positive-negative equal contrastive loss (Wang et al.)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regseg_d2.common.distributed import global_mean
from regseg_d2.ops import pne as ops
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.projection import NormFactory, TrainingProjection
from regseg_d2.state.random_stream import RandomStream

ANCHORS, SAMPLES, REPEATS, UNION_REPEATS = range(4)
"""Streams of random numbers."""


class _Step(NamedTuple):
    """What one forward drew; see ``ops.pne``, ``Draw`` and ``contrast_anchors``."""

    counted: Tensor
    first_of_set: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


@REGULARIZER.register()
class PNE(Regularizer):
    """Contrasts misclassified pixels with correctly classified ones, as many positives as negatives.

    ``contrast`` is Eq. 9: the mean over the anchors of all images and processes (each anchor counts the same,
    whatever its pair and image) of the loss of Eq. 8. |S| of Eq. 9 is their number, after at most
    ``max_anchors`` of each set were drawn. An anchor without a negative adds 0 and counts in |S|
    (``no_negatives`` has other ways); for one without a positive Eq. 9 has no value, and it does not count.
    The weight is alpha of Eq. 4; Table 8 tries 0.4 to 2.3.

    Defaults are the paper's, unless something else is said; its place is the classifier's input.

    Args:
        num_classes: number of classes K.
        channels: channels of the feature.
        temperature: tau of Eq. 8. Table 8 tries 0.1 to 10; at 0.1 the paper's network did not learn. Sane:
            0.3 to 2.
        embedding_channels: channels of the projection (1x1 convolution, norm, ReLU, 1x1 convolution) whose
            unit vectors are contrasted. Training only. Sane: 64 to 512.
        norm: makes the projection's norm.
        num_samples: |P| = |N|: positives of an anchor, and negatives; with replacement where there are fewer.
            The paper gives no number, the published code takes 100. Sane: 20 to 500.
        max_anchors: |S|: anchors of one set (a pair of true and predicted class) at most; more are drawn from
            at random. The paper: fewer than 200. The published code leaves a pair with more out. Sane: 20 to
            1000.
        scope: what anchors and samples are drawn from: ``"image"`` (paper), or ``"batch"`` (of all
            processes).
        contrast: ``"pne"``: Eq. 8. ``"asymmetric"``: Eq. 1, without ``positive_weights`` (Tables 5 and 6).
        positive_weights: w of Eq. 8: the ``"softmax"`` probability of the positive, its ``"logit"`` (one
            below 0 counts as 0), or ``"none"`` (Table 7).
        individual_anchor_sets: misclassified pixels of one class are a set of anchors for each class that
            they are predicted as (section 3.3.1); False: one set, whatever they are predicted as (Table 6,
            column IAS).
        corresponding_negatives: negatives of a set are right pixels of the classes that the set's pixels are
            predicted as (section 3.3.2); False: of all classes but the anchors' own (Table 6, column CN).
        no_negatives: a set without a negative (no right pixel of the predicted class). ``"skip"``: its
            anchors have loss 0 and count in the mean, as Eq. 9 has it. ``"exclude"``: they do not count
            either. ``"anchors"``: they are their own negatives (published code), which pushes pixels of one
            class apart.
        detach_samples: positives and negatives are constants (published code; the paper does not say).
        seed: seed of the draws.
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"contrast": 1.3}
    reads_logits = True
    needs_channels = True
    config_keys = {"embedding_channels": "CHANNELS"}

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        temperature: float = 1.0,
        embedding_channels: int = 256,
        norm: NormFactory = nn.BatchNorm2d,
        num_samples: int = 100,
        max_anchors: int = 200,
        scope: str = "image",
        contrast: str = "pne",
        positive_weights: str = "softmax",
        individual_anchor_sets: bool = True,
        corresponding_negatives: bool = True,
        no_negatives: str = "skip",
        detach_samples: bool = True,
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        self.check_choice("scope", scope, ops.SCOPES)
        self.check_choice("no_negatives", no_negatives, ops.NO_NEGATIVES)
        self.check_choice("positive_weights", positive_weights, ops.POSITIVE_WEIGHTS)
        self.check_choice("contrast", contrast, ops.CONTRASTS)
        self.check_positive("embedding_channels", embedding_channels)
        self.check_positive("num_samples", num_samples)
        self.check_positive("max_anchors", max_anchors)
        self.check_positive("temperature", temperature)
        self.how = ops.Construction(
            num_classes,
            num_samples,
            max_anchors,
            scope,
            individual_anchor_sets,
            corresponding_negatives,
            no_negatives,
        )
        self.temperature = temperature
        self.embedding_channels = embedding_channels
        self.norm = norm
        self.positive_weights = positive_weights
        self.contrast = contrast
        self.detach_samples = detach_samples
        self.register_module("projection", None)
        self.random = RandomStream(seed)
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the projection."""
        self.projection = TrainingProjection(channels, self.embedding_channels, self.norm)

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes the loss; see the class and ``ops/pne.py``."""
        embeddings = self.projection(inputs.feature(self.feature_tap))
        draw = self._draw(inputs)
        contrast = ops.contrast_anchors(
            embeddings,
            self._sample_weights(inputs),
            draw,
            self.how,
            self.temperature,
            self.contrast == "asymmetric",
            self.detach_samples,
        )
        step = _Step(
            draw.counted, draw.first_of_set, contrast.positive_similarity, contrast.negative_similarity
        )
        return {"contrast": global_mean(contrast.losses.sum(), draw.num_counted)}, step

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Goes to the next step's random numbers."""
        self.random.advance()

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """Numbers of this process's last step.

        ``anchors`` that were contrasted, and ``sets`` of them (pairs, by default);
        ``positive_similarity`` and ``negative_similarity``, the mean cosine of an anchor with its
        positives and negatives; ``misclassified``, the share of the valid pixels that are predicted
        wrong.
        """
        num_anchors = step.counted.sum()
        share = step.counted / num_anchors.clamp(min=1)
        labels, predictions = self._classes(inputs)
        valid = labels >= 0
        return {
            "anchors": num_anchors,
            "sets": step.first_of_set.sum(),
            "positive_similarity": (step.positive_similarity * share).sum(),
            "negative_similarity": (step.negative_similarity * share).sum(),
            "misclassified": (valid & (labels != predictions)).sum() / valid.sum().clamp(min=1),
        }

    @torch.no_grad()
    def _draw(self, inputs: RegularizerInput) -> ops.Draw:
        labels, predictions = self._classes(inputs)
        num_images, num_pixels = labels.shape
        bits = ops.RandomBits(
            anchors=self.random.bits(ANCHORS, num_images, num_pixels),
            samples=self.random.bits(SAMPLES, num_images, num_pixels),
            repeats=self._repeats(REPEATS, num_images),
            union_repeats=self._repeats(UNION_REPEATS, num_images),
        )
        return ops.draw_pixels(labels, predictions, self.how, bits)

    def _repeats(self, stream: int, num_images: int) -> Tensor:
        length = self.num_classes * self.how.num_samples
        if self.how.scope == "batch":
            bits = self.random.shared_bits(stream, length)
        else:
            bits = self.random.bits(stream, num_images, length)
        return bits.view(-1, self.how.num_samples)

    def _classes(self, inputs: RegularizerInput) -> tuple[Tensor, Tensor]:
        """Labels and predictions, both ``(N, P)``."""
        size = inputs.taps[self.feature_tap].shape[-2:]
        predictions = inputs.predictions(self.logits_tap, size)
        return inputs.labels_at(size).flatten(1), predictions.classes.flatten(1)

    def _sample_weights(self, inputs: RegularizerInput) -> Tensor | None:
        if self.positive_weights == "none" or self.contrast == "asymmetric":
            return None
        # A positive is predicted as its class: its probability is the largest one.
        predictions = inputs.predictions(self.logits_tap, inputs.taps[self.feature_tap].shape[-2:])
        if self.positive_weights == "softmax":
            return predictions.confidence.unsqueeze(1)
        return predictions.logit_of(predictions.classes).unsqueeze(1)
