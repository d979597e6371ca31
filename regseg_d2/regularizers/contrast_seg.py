"""ContrastSeg: pixel contrast within the batch or with stored pixels (Wang et al., ICCV 2021)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import get_norm
from torch import Tensor, nn
from yacs.config import CfgNode

from regseg_d2.common.distributed import gather_rows, gather_rows_with_gradient, global_mean, rank
from regseg_d2.ops import contrast_seg as ops
from regseg_d2.ops.class_statistics import class_sums
from regseg_d2.ops.contrast_seg_memory import contrast_with_memories
from regseg_d2.ops.grouped_products import pixel_rows
from regseg_d2.ops.sampling import compact
from regseg_d2.ops.stored_contrast import MIN_TEMPERATURE, Memory
from regseg_d2.regularizers.base import REGULARIZER, Regularizer, common_arguments
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.places import find_place
from regseg_d2.regularizers.projection import NormFactory, TrainingProjection
from regseg_d2.state.memory_bank import MemoryBank
from regseg_d2.state.random_stream import RandomStream

ANCHORS = ("segmentation_aware", "random")
SAMPLINGS = ("all", "semi_hard")
MEMORY_DTYPES = {"float32": torch.float32, "float16": torch.float16}

ANCHOR_STREAM, COIN_STREAM, MINING_STREAM, STORE_STREAM = range(4)
"""Streams of random numbers."""


class AnchorOptions(NamedTuple):
    """How anchors are drawn; see ``ops.contrast_seg.draw_anchors``.

    Attributes:
        max_anchors: anchors of the batch of all processes.
        max_views: anchors of a class of an image.
        min_pixels: pixels that a class needs in an image.
        kind: ``"segmentation_aware"``: half of them are misclassified; ``"random"``.
    """

    max_anchors: int = 1024
    max_views: int = 100
    min_pixels: int = 1
    kind: str = "segmentation_aware"


class MemoryOptions(NamedTuple):
    """What is stored of other images.

    Attributes:
        size: samples of each class in each of the two queues.
        dtype: ``"float32"`` or ``"float16"``.
        pixels_per_class: pixels of each class of an image that go into the pixel queue.
    """

    size: int = 5000
    dtype: str = "float32"
    pixels_per_class: int = 10


class SamplingOptions(NamedTuple):
    """What an anchor is contrasted with.

    Attributes:
        kind: ``"all"`` or ``"semi_hard"``.
        hard_fraction: share of the positives, and of the negatives, that semi-hard ones are drawn from.
        num_positives: semi-hard positives.
        num_negatives: semi-hard negatives.
    """

    kind: str = "all"
    hard_fraction: float = 0.1
    num_positives: int = 1024
    num_negatives: int = 2048


@REGULARIZER.register()
class ContrastSeg(Regularizer):
    """Pulls pixels to pixels of their class and pushes them from those of others, also across images.

    Anchors are drawn from the pixels of each class of each image. Without a memory they are contrasted
    with each other, over the whole batch of all processes; with one, with the region means and pixels
    stored of earlier images, to which no gradient flows. An anchor without a positive takes no part: on
    the first step, when the memory is empty, the loss is zero.

    Args:
        channels: channels of the feature.
        num_classes: number of classes K.
        embedding_channels: channels of its projection.
        norm: makes the projection's norm.
        seed: seed of the draws.
        temperature: tau.
        base_temperature: the loss is scaled by ``tau / tau_base`` (published code).
        anchors: how anchors are drawn.
        memory: what is stored; None is without a memory.
        sampling: what an anchor is contrasted with.
        **common: arguments of :class:`Regularizer`.

    Raises:
        ConfigError: if an option is out of its range.
    """

    bank_keys = ("MEMORY_SIZE", "MEMORY_DTYPE")
    terms = ("contrast",)

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_channels: int = 256,
        norm: NormFactory = nn.BatchNorm2d,
        seed: int = 0,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        anchors: AnchorOptions = AnchorOptions(),  # noqa: B008  immutable
        memory: MemoryOptions | None = None,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008  immutable
        name: str = "contrast_seg",
        **common: Any,
    ) -> None:
        super().__init__(name=name, **common)
        self._check_options(embedding_channels, temperature, base_temperature, anchors, memory, sampling)
        self.num_classes = num_classes
        self.temperature = temperature
        self.scale = temperature / base_temperature
        self.anchors = anchors
        self.memory = memory
        self.sampling = sampling
        self.projection = TrainingProjection(channels, embedding_channels, norm)
        self.random = RandomStream(seed)
        self.region_queue: MemoryBank | None = None
        self.pixel_queue: MemoryBank | None = None
        if memory is not None:
            size = (num_classes, memory.size, embedding_channels, MEMORY_DTYPES[memory.dtype])
            self.region_queue, self.pixel_queue = MemoryBank(*size), MemoryBank(*size)
        # Embeddings of the last forward, for the memory.
        self._embeddings: Tensor | None = None
        self._last: tuple[ops.Anchors, ops.Contrast] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, network: nn.Module) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.ContrastSeg``."""
        section = cfg.MODEL.REGULARIZERS.ContrastSeg
        place = find_place(cfg, network, "ContrastSeg")
        memory = MemoryOptions(section.MEMORY_SIZE, section.MEMORY_DTYPE, section.PIXELS_PER_CLASS)
        return {
            **common_arguments(cfg, "ContrastSeg"),
            "feature_tap": place.feature_tap,
            "logits_tap": place.logits_tap,
            "channels": place.channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "weights": {"contrast": section.WEIGHT},
            "embedding_channels": section.CHANNELS,
            "norm": partial(get_norm, cfg.MODEL.SEM_SEG_HEAD.NORM),
            "seed": cfg.SEED,
            "temperature": section.TEMPERATURE,
            "base_temperature": section.BASE_TEMPERATURE,
            "anchors": AnchorOptions(
                section.MAX_ANCHORS, section.MAX_VIEWS, section.MIN_PIXELS, section.ANCHORS
            ),
            "memory": memory if section.MEMORY else None,
            "sampling": SamplingOptions(
                section.SAMPLING, section.HARD_FRACTION, section.NUM_POSITIVES, section.NUM_NEGATIVES
            ),
        }

    def losses(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Computes the loss of this process's anchors, divided by the number of anchors of all."""
        embeddings = self.projection(inputs.feature(self.feature_tap))
        anchors = self._draw(inputs)
        if self.memory is None:
            anchors, contrast = self._contrast_batch(embeddings, anchors)
        else:
            anchors, contrast = self._contrast_memory(embeddings, anchors.compacted())
            self._embeddings = embeddings.detach()
        counted = (anchors.valid & (contrast.num_positives > 0)).to(contrast.losses.dtype)
        self._last = (anchors, contrast._replace(losses=contrast.losses.detach()))
        loss = global_mean((contrast.losses * counted).sum(), counted.sum())
        return {"contrast": self.scale * loss}

    def update_state(self, inputs: RegularizerInput) -> None:
        """Stores region means and pixels of all processes, and goes to the next random numbers."""
        if self._embeddings is not None:
            self._store_regions(inputs, self._embeddings)
            self._store_pixels(inputs, self._embeddings)
        self._embeddings = None
        self.random.advance()

    def diagnostics(self, inputs: RegularizerInput) -> dict[str, Tensor]:
        """Numbers of this process's last step.

        ``anchors`` that had a positive, ``hard``, the share of them that was misclassified, and
        ``classes``, the number of their classes; ``positive_similarity`` and ``negative_similarity``, the
        mean cosine of an anchor with its positives and negatives; with a memory ``region_fill`` and
        ``pixel_fill``, the shares of the slots of the two queues that hold a sample.
        """
        assert self._last is not None
        anchors, contrast = self._last
        counted = anchors.valid & (contrast.num_positives > 0)
        number = counted.sum()
        share = counted / number.clamp(min=1)
        present = torch.zeros(self.num_classes, dtype=torch.long, device=counted.device)
        values = {
            "anchors": number,
            "hard": (anchors.hard * share).sum(),
            "classes": (present.scatter_add(0, anchors.classes, counted.long()) > 0).sum(),
            "positive_similarity": (contrast.positive_similarity * share).sum(),
            "negative_similarity": (contrast.negative_similarity * share).sum(),
        }
        if self.region_queue is not None and self.pixel_queue is not None:
            values["region_fill"] = self.region_queue.filled.double().mean()
            values["pixel_fill"] = self.pixel_queue.filled.double().mean()
        return values

    @torch.no_grad()
    def _draw(self, inputs: RegularizerInput) -> ops.Anchors:
        labels = self._labels(inputs)
        num_images, num_pixels = labels.shape
        wrong = torch.zeros_like(labels, dtype=torch.bool)
        if self.anchors.kind == "segmentation_aware":
            size = inputs.taps[self.feature_tap].shape[-2:]
            wrong = inputs.predictions(self.logits_tap, size).classes.flatten(1) != labels
        return ops.draw_anchors(
            labels,
            wrong,
            self.random.bits(ANCHOR_STREAM, num_images, num_pixels),
            self.random.bits(COIN_STREAM, num_images, self.num_classes),
            self.anchors.max_views,
            self.anchors.max_anchors,
            self.anchors.min_pixels,
        )

    def _contrast_batch(self, embeddings: Tensor, anchors: ops.Anchors) -> tuple[ops.Anchors, ops.Contrast]:
        """Contrasts the anchors of this process with those of all."""
        rows = F.normalize(pixel_rows(embeddings, anchors.pixels), dim=1)
        first = rank() * len(rows)
        own, own_valid = compact(anchors.valid)
        places, valid = compact(gather_rows(anchors.valid.to(torch.uint8)).bool())
        classes = gather_rows(anchors.classes)[places]
        kept = ops.Anchors(anchors.pixels[own], anchors.classes[own], anchors.hard[own], own_valid)
        same = kept.classes.unsqueeze(1) == classes
        itself = (own + first).unsqueeze(1) == places
        contrast = ops.contrast_within(
            rows[own],
            gather_rows_with_gradient(rows)[places],
            same & ~itself & valid,
            ~same & valid,
            self.temperature,
            self._mining(embeddings, kept),
        )
        return kept, contrast

    def _contrast_memory(self, embeddings: Tensor, anchors: ops.Anchors) -> tuple[ops.Anchors, ops.Contrast]:
        """Contrasts the anchors of this process with what is stored."""
        assert self.region_queue is not None and self.pixel_queue is not None
        contrast = contrast_with_memories(
            F.normalize(pixel_rows(embeddings, anchors.pixels), dim=1),
            anchors.classes,
            [Memory(queue.rows, queue.filled) for queue in (self.region_queue, self.pixel_queue)],
            self.temperature,
            self._mining(embeddings, anchors),
        )
        return anchors, contrast

    def _mining(self, embeddings: Tensor, anchors: ops.Anchors) -> ops.Mining | None:
        if self.sampling.kind == "all":
            return None
        num_images, num_pixels = len(embeddings), embeddings[0, 0].numel()
        seeds = self.random.bits(MINING_STREAM, num_images, num_pixels).flatten()[anchors.pixels]
        sampling = self.sampling
        return ops.Mining(sampling.hard_fraction, sampling.num_positives, sampling.num_negatives, seeds)

    def _store_regions(self, inputs: RegularizerInput, embeddings: Tensor) -> None:
        """Stores the mean of the unit embeddings of each class of each image, brought to length 1."""
        assert self.region_queue is not None
        one_hot = inputs.one_hot_at(embeddings.shape[-2:], self.num_classes, embeddings.dtype)
        # Four times as fast as vector_norm, which does not like this memory order.
        lengths = embeddings.square().sum(dim=1).sqrt().flatten(1).clamp(min=1e-12)
        sums, _ = class_sums(embeddings.flatten(2), one_hot / lengths.unsqueeze(1))
        classes = torch.arange(self.num_classes, device=sums.device).repeat(len(sums))
        present = one_hot.sum(dim=2) > 0
        self.region_queue.push(F.normalize(sums, dim=2).flatten(0, 1), classes, present.flatten())

    def _store_pixels(self, inputs: RegularizerInput, embeddings: Tensor) -> None:
        """Stores some pixels of each class of each image, drawn without repeats."""
        assert self.pixel_queue is not None and self.memory is not None
        labels = self._labels(inputs)
        bits = self.random.bits(STORE_STREAM, *labels.shape)
        pixels, classes, valid = ops.draw_pixels(labels, bits, self.num_classes, self.memory.pixels_per_class)
        rows = F.normalize(pixel_rows(embeddings, pixels), dim=1)
        self.pixel_queue.push(rows, classes, valid)

    def _labels(self, inputs: RegularizerInput) -> Tensor:
        return inputs.labels_at(inputs.taps[self.feature_tap].shape[-2:]).flatten(1)

    def _check_options(
        self,
        embedding_channels: int,
        temperature: float,
        base_temperature: float,
        anchors: AnchorOptions,
        memory: MemoryOptions | None,
        sampling: SamplingOptions,
    ) -> None:
        positive = {
            "CHANNELS": embedding_channels,
            "BASE_TEMPERATURE": base_temperature,
            "MAX_ANCHORS": anchors.max_anchors,
            "MAX_VIEWS": anchors.max_views,
            "MIN_PIXELS": anchors.min_pixels,
            "NUM_POSITIVES": sampling.num_positives,
            "NUM_NEGATIVES": sampling.num_negatives,
        }
        if memory is not None:
            positive |= {"MEMORY_SIZE": memory.size, "PIXELS_PER_CLASS": memory.pixels_per_class}
            self.check_choice("MEMORY_DTYPE", memory.dtype, tuple(MEMORY_DTYPES))
        for key, value in positive.items():
            self.check_positive(key, value)
        self.check_option(
            "TEMPERATURE", temperature, temperature >= MIN_TEMPERATURE, f"{MIN_TEMPERATURE} or more"
        )
        self.check_choice("ANCHORS", anchors.kind, ANCHORS)
        self.check_choice("SAMPLING", sampling.kind, SAMPLINGS)
        fraction = sampling.hard_fraction
        self.check_option("HARD_FRACTION", fraction, 0 < fraction <= 1, "a number above 0, at most 1")
