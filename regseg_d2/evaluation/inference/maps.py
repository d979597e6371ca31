"""Scores of an image at full size, made a few classes at a time.

``K x H x W`` scores of a large image are gigabytes, of which labels need one number a pixel. Scores are
interpolated, averaged and normalised class by class, so all of it can be done for a few classes, then for
the next ones. Every class goes through the very operations that it would go through together with all
others: the results are equal bit for bit.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of the maps that are made at a time. Small enough that the allocator hands out the same memory
# again instead of fetching fresh pages from the system.
CHUNK_BYTES = 32 << 20
# torch picks its kernel by the layout and the number of channels, and its kernels round differently. The one
# for channels-last tensors and for small images (height + width at most this) takes channels in groups of
# at most 16 (AVX-512) and those that are left one by one, ...
_SMALL_IMAGE = 128
_CHANNEL_GROUP = 16
# ... and is not taken for fewer channels than this, except for three.
_FEWEST_CHANNELS = 4


class ScoreMaps(ABC):
    """Scores ``(K, H, W)`` that are not held, but made for the classes that are asked for.

    Attributes:
        num_classes: K.
        size: ``(H, W)``.
        device: where the scores are made.
        pixels: most pixels of a class at a time, those of steps between included.
        grouped: whether channels are treated in groups, which chunks must not cut.
    """

    def __init__(
        self, num_classes: int, size: tuple[int, int], device: torch.device, pixels: int, grouped: bool
    ) -> None:
        self.num_classes = num_classes
        self.size = size
        self.device = device
        self.pixels = pixels
        self.grouped = grouped

    @abstractmethod
    def __call__(self, classes: slice) -> Tensor:
        """Returns the scores of a range of classes, ``(classes, H, W)``; not to be written to."""

    def chunks(self) -> Iterator[slice]:
        """Yields ranges that cover all classes, each of about ``CHUNK_BYTES`` of scores.

        They are cut so that each channel is computed as it would be among all of them.
        """
        length = max(1, CHUNK_BYTES // (4 * self.pixels))
        if self.grouped:
            length = max(length // _CHANNEL_GROUP, 1) * _CHANNEL_GROUP
        elif length == _FEWEST_CHANNELS - 1:
            length -= 1
        start = 0
        while start < self.num_classes:
            stop = start + length
            if self.num_classes - stop < _FEWEST_CHANNELS:
                stop = self.num_classes
            yield slice(start, stop)
            start = stop

    def all_classes(self) -> Tensor:
        """Returns the scores of all classes, ``(K, H, W)``."""
        scores = torch.empty(self.num_classes, *self.size, device=self.device)
        for classes in self.chunks():
            scores[classes] = self(classes)
        return scores


class UpsampledLogits(ScoreMaps):
    """Logits of a network, stretched over its input.

    Args:
        logits: ``(1, K, h, w)``; its memory format decides on torch's kernel.
        image_size: ``(H, W)`` of the input without padding.
        scale: the input, padding included, is this many times as large, and the padding is cut off; None
            stretches over ``image_size``.
    """

    def __init__(self, logits: Tensor, image_size: tuple[int, int], scale: float | None = None) -> None:
        num_classes = logits.shape[1]
        height, width = image_size if scale is None else (int(scale * side) for side in logits.shape[2:])
        self.logits = logits
        self.scale = scale
        self._is_channels_last = (
            logits.is_contiguous(memory_format=torch.channels_last) and num_classes >= _FEWEST_CHANNELS
        )
        grouped = self._is_channels_last or height + width <= _SMALL_IMAGE
        super().__init__(num_classes, image_size, logits.device, max(height * width, 1), grouped)

    def __call__(self, classes: slice) -> Tensor:
        """Does what Detectron2's heads and its ``sem_seg_postprocess`` do, for a range of classes."""
        part = self.logits[:, classes]
        if self._is_channels_last:
            part = part.contiguous(memory_format=torch.channels_last)
        if self.scale is not None:
            part = F.interpolate(part, scale_factor=self.scale, mode="bilinear", align_corners=False)
        elif part.shape[-2:] != self.size:
            part = F.interpolate(part, size=self.size, mode="bilinear", align_corners=False)
        return part[0, :, : self.size[0], : self.size[1]]


class ResizedMaps(ScoreMaps):
    """Other maps at another size, bilinear.

    Args:
        maps: the other maps.
        size: ``(H, W)``.
    """

    def __init__(self, maps: ScoreMaps, size: tuple[int, int]) -> None:
        self.maps = maps
        pixels, grouped = max(maps.pixels, size[0] * size[1]), maps.grouped or sum(size) <= _SMALL_IMAGE
        super().__init__(maps.num_classes, size, maps.device, pixels, grouped)

    def __call__(self, classes: slice) -> Tensor:
        """Resizes a range of classes."""
        part = self.maps(classes)
        if tuple(part.shape[-2:]) == self.size:
            return part
        return F.interpolate(part.unsqueeze(0), size=self.size, mode="bilinear", align_corners=False)[0]


class AveragedTiles(ScoreMaps):
    """The mean of the maps of overlapping windows.

    Args:
        tiles: maps of the windows.
        corners: top row and left column of each window.
        size: ``(H, W)``; every pixel lies in a window.
    """

    def __init__(
        self, tiles: Sequence[ScoreMaps], corners: Sequence[tuple[int, int]], size: tuple[int, int]
    ) -> None:
        self.tiles = tiles
        self.corners = corners
        first = tiles[0]
        pixels = max(size[0] * size[1], first.pixels)
        super().__init__(first.num_classes, size, first.device, pixels, first.grouped)

    def __call__(self, classes: slice) -> Tensor:
        """Adds up the windows in their order and divides by how many cover each pixel."""
        total: Tensor | None = None
        coverage = torch.zeros(self.size, device=self.device)
        for (top, left), tile in zip(self.corners, self.tiles, strict=True):
            part = tile(classes)
            if total is None:
                total = part.new_zeros(len(part), *self.size)
            rows, columns = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
            total[:, rows, columns] += part
            coverage[rows, columns] += 1
        if total is None:
            raise ValueError("there are no windows")
        return total.div_(coverage)


class MeanProbabilities(ScoreMaps):
    """The mean of the probabilities of several views of an image, each with its mirror image.

    A view and its mirror image are added before others are, so that the mean of a mirrored image is the
    mirrored mean, bit for bit.

    Args:
        views: for each scale the maps of the image and, with flips, those of the mirrored image; all of one
            size.
        are_logits: the maps are logits, of which the softmax is averaged; else they are probabilities
            themselves.
    """

    def __init__(
        self, views: Sequence[tuple[ScoreMaps, ScoreMaps | None]], *, are_logits: bool = True
    ) -> None:
        self._views = [
            [(maps, log_sum_exp(maps) if are_logits else None) for maps in pair if maps is not None]
            for pair in views
        ]
        all_maps = [maps for pair in self._views for maps, _ in pair]
        pixels, grouped = max(maps.pixels for maps in all_maps), any(maps.grouped for maps in all_maps)
        super().__init__(all_maps[0].num_classes, all_maps[0].size, all_maps[0].device, pixels, grouped)

    def __call__(self, classes: slice) -> Tensor:
        """Averages the probabilities of all views."""
        total = functools.reduce(Tensor.add_, (self._of_pair(pair, classes) for pair in self._views))
        return total.div_(sum(map(len, self._views)))

    @staticmethod
    def _of_pair(pair: list[tuple[ScoreMaps, Tensor | None]], classes: slice) -> Tensor:
        plain, *mirrored = (
            maps(classes).clone() if normalizer is None else (maps(classes) - normalizer).exp_()
            for maps, normalizer in pair
        )
        for part in mirrored:
            plain += part.flip(-1)
        return plain


def log_sum_exp(maps: ScoreMaps) -> Tensor:
    """Logarithm of the sum of the exponentials of all classes, ``(H, W)``: the softmax's normaliser."""
    top = torch.full(maps.size, torch.finfo(torch.float32).min, device=maps.device)
    total = torch.zeros(maps.size, device=maps.device)
    for classes in maps.chunks():
        part = maps(classes)
        new_top = torch.maximum(top, part.amax(dim=0))
        total.mul_((top - new_top).exp_()).add_((part - new_top).exp_().sum(dim=0))
        top = new_top
    return top + total.log()
