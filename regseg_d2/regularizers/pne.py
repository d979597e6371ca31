"""PNE: positive-negative equal contrastive loss (Wang et al.)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import get_norm
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import global_mean
from regseg_d2.ops import pne as ops
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import find_place
from regseg_d2.regularizers.projection import NormFactory, TrainingProjection
from regseg_d2.state.random_stream import RandomStream

ANCHORS, SAMPLES, REPEATS, UNION_REPEATS = range(4)
"""Streams of random numbers."""


@REGULARIZER.register()
class PNE(Regularizer):
    """Contrasts misclassified pixels with correctly classified ones, as many positives as negatives.

    ``contrast`` is Eq. 9: the mean over the anchors of all images and processes (each anchor counts the same,
    whatever its pair and image) of the loss of Eq. 8. |S| of Eq. 9 is their number, after at most
    ``MAX_ANCHORS`` of each set were drawn. An anchor without a negative adds 0 and counts in |S|
    (``NO_NEGATIVES`` has other ways); for one without a positive Eq. 9 has no value, and it does not count.

    Args:
        channels: channels of the feature.
        embedding_channels: channels of its projection.
        norm: makes the projection's norm.
        how: how anchors and samples are put together.
        seed: seed of the draws.
        temperature: tau of Eq. 8.
        positive_weights: weight w of a positive in Eq. 8: its ``"softmax"`` probability, its ``"logit"``
            (where that is positive), or ``"none"`` (Table 7). Eq. 1 has no weights.
        contrast: ``"pne"`` (Eq. 8) or ``"asymmetric"`` (Eq. 1).
        detach_samples: positives and negatives are constants (published code).
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
        how: ops.Construction,
        embedding_channels: int = 256,
        norm: NormFactory = nn.BatchNorm2d,
        seed: int = 0,
        temperature: float = 1.0,
        positive_weights: str = "softmax",
        contrast: str = "pne",
        detach_samples: bool = True,
        name: str = "pne",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        self.check_choice("SCOPE", how.scope, ops.SCOPES)
        self.check_choice("NO_NEGATIVES", how.no_negatives, ops.NO_NEGATIVES)
        self.check_choice("POSITIVE_WEIGHTS", positive_weights, ops.POSITIVE_WEIGHTS)
        self.check_choice("CONTRAST", contrast, ops.CONTRASTS)
        self.check_positive("CHANNELS", embedding_channels)
        self.check_positive("NUM_SAMPLES", how.num_samples)
        self.check_positive("MAX_ANCHORS", how.max_anchors)
        self.check_positive("TEMPERATURE", temperature)
        self.how = how
        self.temperature = temperature
        self.positive_weights = positive_weights
        self.contrast = contrast
        self.detach_samples = detach_samples
        self.projection = TrainingProjection(channels, embedding_channels, norm)
        self.random = RandomStream(seed)
        self._last: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.PNE``."""
        pne = cfg.MODEL.REGULARIZERS.PNE
        place = find_place(cfg, network, "PNE")
        return {
            **common_arguments(cfg, "PNE"),
            "feature_tap": place.feature_tap,
            "logits_tap": place.logits_tap,
            "channels": place.channels,
            "weights": {"contrast": pne.WEIGHT},
            "embedding_channels": pne.CHANNELS,
            "norm": partial(get_norm, cfg.MODEL.SEM_SEG_HEAD.NORM),
            "how": ops.Construction(
                num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                num_samples=pne.NUM_SAMPLES,
                max_anchors=pne.MAX_ANCHORS,
                scope=pne.SCOPE,
                individual_anchor_sets=pne.INDIVIDUAL_ANCHOR_SETS,
                corresponding_negatives=pne.CORRESPONDING_NEGATIVES,
                no_negatives=pne.NO_NEGATIVES,
            ),
            "seed": cfg.SEED,
            "temperature": pne.TEMPERATURE,
            "positive_weights": pne.POSITIVE_WEIGHTS,
            "contrast": pne.CONTRAST,
            "detach_samples": pne.DETACH_SAMPLES,
        }

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
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
        self._last = {
            "counted": draw.counted,
            "first_of_set": draw.first_of_set,
            "positive_similarity": contrast.positive_similarity,
            "negative_similarity": contrast.negative_similarity,
        }
        return {"contrast": global_mean(contrast.losses.sum(), draw.num_counted)}

    def update_state(self, inputs: RegularizerInput) -> None:
        """Goes to the next step's random numbers."""
        self.random.advance()

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Numbers of this process's last step.

        ``anchors`` that were contrasted, and ``sets`` of them (pairs, by default);
        ``positive_similarity`` and ``negative_similarity``, the mean cosine of an anchor with its
        positives and negatives; ``misclassified``, the share of the valid pixels that are predicted
        wrong.
        """
        last = self._last
        num_anchors = last["counted"].sum()
        share = last["counted"] / num_anchors.clamp(min=1)
        labels, predictions = self._classes(inputs)
        valid = (labels >= 0) & (labels < self.how.num_classes)
        return {
            "anchors": num_anchors,
            "sets": last["first_of_set"].sum(),
            "positive_similarity": (last["positive_similarity"] * share).sum(),
            "negative_similarity": (last["negative_similarity"] * share).sum(),
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
        length = self.how.num_classes * self.how.num_samples
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
