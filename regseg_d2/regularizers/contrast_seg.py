"""ContrastSeg: pixel contrast within the batch or with stored pixels (Wang et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_d2.common.distributed import gather_rows, gather_rows_with_gradient, global_mean, rank
from regseg_d2.ops import contrast_seg as ops
from regseg_d2.ops.class_statistics import class_sums
from regseg_d2.ops.contrast_seg_memory import contrast_with_memories
from regseg_d2.ops.grouped_products import pixel_rows
from regseg_d2.ops.sampling import compact
from regseg_d2.ops.stored_contrast import MIN_TEMPERATURE, Memory
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.inputs import RegularizerInput
from regseg_d2.regularizers.projection import NormFactory, TrainingProjection
from regseg_d2.state.memory_bank import ROW_DTYPES, MemoryBank
from regseg_d2.state.random_stream import RandomStream

ANCHORS = ("segmentation_aware", "random")
SAMPLINGS = ("all", "semi_hard")

ANCHOR_STREAM, COIN_STREAM, MINING_STREAM, STORE_STREAM = range(4)
"""Streams of random numbers."""


class _Step(NamedTuple):
    """What one forward computed, without gradient.

    Attributes:
        embeddings: ``(N, D, h, w)``.
        anchors: the anchors that were contrasted.
        contrast: what came out.
    """

    embeddings: Tensor
    anchors: ops.Anchors
    contrast: ops.Contrast


@REGULARIZER.register()
class ContrastSeg(Regularizer):
    """Pulls pixels to pixels of their class and pushes them from those of others, also across images.

    Anchors are drawn from the pixels of each class of each image. Without a memory they are contrasted
    with each other, over the whole batch of all processes; with one, with the region means and pixels
    stored of earlier images, to which no gradient flows. An anchor without a positive takes no part: on
    the first step, when the memory is empty, the loss is zero.

    Defaults are those published without a memory; those with one are in
    ``configs/_base_/regularizers/contrast_seg_memory.yaml``. The place is the classifier's input. The weight
    is lambda of the paper: 0.1 without a memory, 1 with one (published code); sane: 0.05 to 1. The published
    settings for Cityscapes have no loss in the first 5000 iterations.

    Args:
        num_classes: number of classes K.
        channels: channels of the feature.
        embedding_channels: channels of the embeddings, the output of the training-only projection. Sane: 64
            to 512.
        norm: makes the projection's norm.
        temperature: tau: 0.1 without a memory, 0.07 with one (published code). 0.025 or more. Sane: 0.05 to
            0.5.
        base_temperature: tau_base: the loss is scaled by ``tau / tau_base`` (published code). Equal to
            ``temperature``: no scaling.
        max_anchors: anchors of the whole batch, over all processes, at most (published code: of each
            process); they are shared out evenly among the classes of each image. Sane: 256 to 4096.
        max_views: anchors of a class of an image at most; 100 without a memory, 1 with one (published code).
        min_pixels: a class with fewer pixels than this in an image, at feature size, gives no anchors there.
            The published code takes ``max_views + 1``, so that small objects never are anchors.
        anchors: ``"segmentation_aware"``: half of a class's anchors are misclassified pixels. ``"random"``:
            drawn from all.
        memory: contrast with stored samples of other images, instead of with the other anchors of the batch.
        memory_size: T: samples kept of each class in each of two queues, one of region means, one of pixels.
            Memory: 2 x classes x size x embedding channels x 4 bytes on each process: 195 MB for 19 classes,
                1.5 GB
            for 150. Sane: 500 to 10000.
        memory_dtype: type that samples are kept in: ``"float32"``, or ``"float16"``, which halves the memory.
        pixels_per_class: V: pixels of each class of an image that go into the pixel queue. Sane: 1 to 50.
        sampling: positives and negatives of an anchor: ``"all"``, or some of the hardest ones
            (``"semi_hard"``; not in the published code).
        hard_fraction: semi_hard: share of an anchor's positives (least similar) and negatives (most similar)
            that are drawn from; 0.1 in the paper. In (0, 1].
        num_positives: semi_hard: how many positives are drawn of these, without repeats; all, if there are no
            more.
        num_negatives: the same for negatives.
        seed: seed of the draws.
        **common: arguments of :class:`Regularizer`.

    Raises:
        OptionError: if an argument is out of its range.
    """

    terms = {"contrast": 0.1}
    needs_channels = True
    config_keys = {"embedding_channels": "CHANNELS"}
    bank_keys = ("MEMORY_SIZE", "MEMORY_DTYPE")

    def __init__(
        self,
        num_classes: int,
        channels: int | None = None,
        *,
        embedding_channels: int = 256,
        norm: NormFactory = nn.BatchNorm2d,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        max_anchors: int = 1024,
        max_views: int = 100,
        min_pixels: int = 1,
        anchors: str = "segmentation_aware",
        memory: bool = False,
        memory_size: int = 5000,
        memory_dtype: str = "float32",
        pixels_per_class: int = 10,
        sampling: str = "all",
        hard_fraction: float = 0.1,
        num_positives: int = 1024,
        num_negatives: int = 2048,
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(num_classes, channels, **common)
        for argument, number in {
            "embedding_channels": embedding_channels,
            "base_temperature": base_temperature,
            "max_anchors": max_anchors,
            "max_views": max_views,
            "min_pixels": min_pixels,
            "num_positives": num_positives,
            "num_negatives": num_negatives,
        }.items():
            self.check_positive(argument, number)
        if memory:
            self.check_positive("memory_size", memory_size)
            self.check_positive("pixels_per_class", pixels_per_class)
            self.check_choice("memory_dtype", memory_dtype, tuple(ROW_DTYPES))
        self.check_option(
            "temperature", temperature, temperature >= MIN_TEMPERATURE, f"{MIN_TEMPERATURE} or more"
        )
        self.check_choice("anchors", anchors, ANCHORS)
        self.check_choice("sampling", sampling, SAMPLINGS)
        self.check_option(
            "hard_fraction", hard_fraction, 0 < hard_fraction <= 1, "a number above 0, at most 1"
        )
        self.embedding_channels = embedding_channels
        self.norm = norm
        self.temperature = temperature
        self.scale = temperature / base_temperature
        self.max_anchors = max_anchors
        self.max_views = max_views
        self.min_pixels = min_pixels
        self.anchors = anchors
        self.pixels_per_class = pixels_per_class
        self.sampling = sampling
        self.hard_fraction = hard_fraction
        self.num_positives = num_positives
        self.num_negatives = num_negatives
        self.reads_logits = anchors == "segmentation_aware"
        self.register_module("projection", None)
        self.random = RandomStream(seed)
        self.region_queue: MemoryBank | None = None
        self.pixel_queue: MemoryBank | None = None
        if memory:
            size = (num_classes, memory_size, embedding_channels, ROW_DTYPES[memory_dtype])
            self.region_queue, self.pixel_queue = MemoryBank(*size), MemoryBank(*size)
        if channels is not None:
            self.make_parts(channels)

    def make_parts(self, channels: int) -> None:
        """Makes the projection."""
        self.projection = TrainingProjection(channels, self.embedding_channels, self.norm)

    def losses(self, inputs: RegularizerInput) -> tuple[dict[str, Tensor], _Step]:
        """Computes the loss of this process's anchors, divided by the number of anchors of all."""
        embeddings = self.projection(inputs.feature(self.feature_tap))
        anchors = self._draw(inputs)
        if self.region_queue is None:
            anchors, contrast = self._contrast_batch(embeddings, anchors)
        else:
            anchors, contrast = self._contrast_memory(embeddings, anchors.compacted())
        counted = (anchors.valid & (contrast.num_positives > 0)).to(contrast.losses.dtype)
        loss = global_mean((contrast.losses * counted).sum(), counted.sum())
        step = _Step(embeddings.detach(), anchors, contrast._replace(losses=contrast.losses.detach()))
        return {"contrast": self.scale * loss}, step

    def update_state(self, inputs: RegularizerInput, step: _Step) -> None:
        """Stores region means and pixels of all processes, and goes to the next random numbers."""
        if self.region_queue is not None:
            self._store_regions(inputs, step.embeddings)
            self._store_pixels(inputs, step.embeddings)
        self.random.advance()

    def diagnostics(self, inputs: RegularizerInput, step: _Step) -> dict[str, Tensor]:
        """Numbers of this process's last step.

        ``anchors`` that had a positive, ``hard``, the share of them that was misclassified, and
        ``classes``, the number of their classes; ``positive_similarity`` and ``negative_similarity``, the
        mean cosine of an anchor with its positives and negatives; with a memory ``region_fill`` and
        ``pixel_fill``, the shares of the slots of the two queues that hold a sample.
        """
        anchors, contrast = step.anchors, step.contrast
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
        if self.reads_logits:
            size = inputs.taps[self.feature_tap].shape[-2:]
            wrong = inputs.predictions(self.logits_tap, size).classes.flatten(1) != labels
        return ops.draw_anchors(
            labels,
            wrong,
            self.random.bits(ANCHOR_STREAM, num_images, num_pixels),
            self.random.bits(COIN_STREAM, num_images, self.num_classes),
            self.max_views,
            self.max_anchors,
            self.min_pixels,
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
        if self.sampling == "all":
            return None
        num_images, num_pixels = len(embeddings), embeddings[0, 0].numel()
        seeds = self.random.bits(MINING_STREAM, num_images, num_pixels).flatten()[anchors.pixels]
        return ops.Mining(self.hard_fraction, self.num_positives, self.num_negatives, seeds)

    def _store_regions(self, inputs: RegularizerInput, embeddings: Tensor) -> None:
        """Stores the mean of the unit embeddings of each class of each image, brought to length 1."""
        assert self.region_queue is not None
        one_hot = inputs.one_hot_at(embeddings.shape[-2:], embeddings.dtype)
        # Four times as fast as vector_norm, which does not like this memory order.
        lengths = embeddings.square().sum(dim=1).sqrt().flatten(1).clamp(min=1e-12)
        sums, _ = class_sums(embeddings.flatten(2), one_hot / lengths.unsqueeze(1))
        classes = torch.arange(self.num_classes, device=sums.device).repeat(len(sums))
        present = one_hot.sum(dim=2) > 0
        self.region_queue.push(F.normalize(sums, dim=2).flatten(0, 1), classes, present.flatten())

    def _store_pixels(self, inputs: RegularizerInput, embeddings: Tensor) -> None:
        """Stores some pixels of each class of each image, drawn without repeats."""
        assert self.pixel_queue is not None
        labels = self._labels(inputs)
        bits = self.random.bits(STORE_STREAM, *labels.shape)
        pixels, classes, valid = ops.draw_pixels(labels, bits, self.num_classes, self.pixels_per_class)
        rows = F.normalize(pixel_rows(embeddings, pixels), dim=1)
        self.pixel_queue.push(rows, classes, valid)

    def _labels(self, inputs: RegularizerInput) -> Tensor:
        return inputs.labels_at(inputs.taps[self.feature_tap].shape[-2:]).flatten(1)
