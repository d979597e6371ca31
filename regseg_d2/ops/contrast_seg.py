"""Cross-image pixel contrast: which pixels are anchors, and their loss.

Source: Wang, Zhou, Yu, Dai, Konukoglu, Van Gool, "Exploring Cross-Image Pixel Contrast for Semantic
Segmentation", ICCV 2021, section 3. Where the published code does something else it is said at the
function.

The loss of an anchor is that of ``ops/stored_contrast.py``: an anchor needs one number for all its negatives.
Without a positive, where the published code divides by zero, it is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum_constant
from regseg_d2.ops.sampling import compact, group_order, mix_bits
from regseg_d2.ops.stored_contrast import Contrast


@dataclass(frozen=True)
class Anchors:
    """Pixels that are drawn as anchors.

    Attributes:
        pixels: ``(A,)`` pixel numbers in ``[0, N * P)``.
        classes: ``(A,)`` their classes.
        hard: ``(A,)`` bool, misclassified.
        valid: ``(A,)`` bool, which of them count.
    """

    pixels: Tensor
    classes: Tensor
    hard: Tensor
    valid: Tensor

    def compacted(self) -> Anchors:
        """On the CPU only those that count; elsewhere all, those that count first."""
        items, valid = compact(self.valid)
        return Anchors(self.pixels[items], self.classes[items], self.hard[items], valid)


def draw_anchors(
    labels: Tensor,
    wrong: Tensor,
    bits: Tensor,
    coins: Tensor,
    max_views: int,
    max_anchors: int,
    min_pixels: int = 1,
) -> Anchors:
    """Draws anchors of each class of each image, half of them misclassified.

    Every (image, class) of the whole batch with ``min_pixels`` pixels or more gets the same quota of at
    most ``max_views`` anchors, which keeps all of them together below ``max_anchors`` (but for one anchor
    each, that every one gets). If there are fewer misclassified pixels than half the quota, others fill
    up, and the other way round; of an odd quota, the odd one is of either kind.

    (The published code's quota is one process's, and pixels that are classified right always get the odd
    one: with a quota of 1 it never draws a misclassified pixel while there is another one.)

    Args:
        labels: ``(N, P)`` class ids, void is negative.
        wrong: ``(N, P)`` bool, misclassified pixels. All False: anchors are drawn from all pixels alike.
        bits: ``(N, P)`` long in ``[0, 2**32)``, random.
        coins: ``(N, K)`` long in ``[0, 2**32)``, random.
        max_views: anchors of a class of an image at most.
        max_anchors: anchors of the batch of all processes at most.
        min_pixels: a class with fewer pixels in an image gives no anchor.

    Returns:
        Anchors by image and class, in as many places on every process: their number depends on numbers of
        images and classes only.
    """
    num_images, num_classes = coins.shape
    groups = _image_classes(labels, num_classes)
    # Two groups for each class of an image: misclassified pixels, and the others.
    halves = torch.where(groups >= 0, 2 * groups + (~wrong).long(), -1).flatten()
    order = group_order(halves, 2 * num_images * num_classes, bits.flatten())
    counts, starts = order.counts.view(-1, 2), order.starts.view(-1, 2)
    views = _views_per_group(counts.sum(dim=1) >= max(min_pixels, 1), max_views, max_anchors)
    quotas, num_hard = _quotas(counts, views, coins.flatten(), min_pixels)
    num_places = min(max(max_anchors, num_images * num_classes), num_images * num_classes * max_views)
    places = torch.arange(num_places, device=labels.device)
    ends = quotas.cumsum(0)
    group = torch.searchsorted(ends, places, right=True).clamp(max=len(ends) - 1)
    view = places - (ends[group] - quotas[group])
    valid = places < ends[-1]
    hard = view < num_hard[group]
    position = torch.where(hard, starts[group, 0] + view, starts[group, 1] + view - num_hard[group])
    pixels = order.items[torch.where(valid, position, 0)]
    return Anchors(pixels, group % num_classes, hard & valid, valid)


def _views_per_group(takes_part: Tensor, max_views: int, max_anchors: int) -> Tensor:
    num_groups = all_reduce_sum_constant(takes_part.sum())
    views = torch.div(max_anchors, num_groups.clamp(min=1), rounding_mode="floor")
    return views.clamp(1, max_views)


def _quotas(counts: Tensor, views: Tensor, coins: Tensor, min_pixels: int) -> tuple[Tensor, Tensor]:
    """Anchors of each group, and how many of them are misclassified pixels, both ``(G,)``."""
    num_hard, num_easy = counts.unbind(dim=1)
    total = num_hard + num_easy
    quotas = torch.where(total >= min_pixels, torch.minimum(total, views), 0)
    half = (quotas + (coins >> 31)) // 2
    return quotas, torch.minimum(num_hard, torch.maximum(half, quotas - num_easy))


def _image_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Number of the (image, class) of each pixel, ``(N, P)``; -1 for void."""
    first = torch.arange(len(labels), device=labels.device).unsqueeze(1) * num_classes
    return torch.where(labels >= 0, first + labels, -1)


def draw_pixels(labels: Tensor, bits: Tensor, num_classes: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws pixels of each class of each image, without repeats; all of them, if there are too few.

    (The published code draws a number below the class's pixel count and takes the pixel of that number
    in the whole image, which mostly is of another class.)

    Args:
        labels: ``(N, P)`` class ids, void is negative.
        bits: ``(N, P)`` long in ``[0, 2**32)``, random.
        num_classes: number of classes K.
        number: pixels D of each class of each image.

    Returns:
        Pixel numbers in ``[0, N * P)``, their classes, and which of them count, each ``(N * K * D,)``, by
        image and class.
    """
    groups = _image_classes(labels, num_classes).flatten()
    order = group_order(groups, len(labels) * num_classes, bits.flatten())
    pixels, valid = order.draw(number)
    classes = torch.arange(num_classes, device=labels.device).repeat(len(labels))
    return pixels.flatten(), classes.repeat_interleave(number), valid.flatten()


class Mining(NamedTuple):
    """Semi-hard samples: some of the hardest positives and negatives of each anchor.

    Attributes:
        fraction: share of the positives, and of the negatives, that are the hardest ones.
        num_positives: positives drawn from these.
        num_negatives: negatives drawn from these.
        seeds: ``(A,)`` long in ``[0, 2**32)``, random numbers of the anchors.
    """

    fraction: float
    num_positives: int
    num_negatives: int
    seeds: Tensor


def draw_hardest(
    scores: Tensor, counts: Tensor, fraction: float, number: int, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws, for each row, some of the entries with the largest scores, without repeats.

    Args:
        scores: ``(A, M)``; ``-inf`` where an entry is no candidate.
        counts: ``(A,)`` candidates of each row.
        fraction: share of the candidates that are drawn from, those with the largest scores.
        number: entries drawn of each row; all of that share, if it has no more.
        seeds: ``(A,)`` long in ``[0, 2**32)``, random.

    Returns:
        Columns ``(A, S)`` and bool ``(A, S)``, which of them count.
    """
    # Less a trifle, as 0.1 * 30 is a little more than 3.
    num_hard = (counts.double() * fraction - 1e-9).ceil().long()
    longest = math.ceil(scores.shape[1] * fraction - 1e-9)
    columns = scores.topk(longest, dim=1).indices
    ranks = torch.arange(longest, device=scores.device)
    eligible = ranks < num_hard.unsqueeze(1)
    if longest <= number:
        return columns, eligible
    keys = mix_bits(seeds.unsqueeze(1) + ranks).masked_fill(~eligible, 2**32)
    drawn = keys.topk(number, dim=1, largest=False).indices
    return columns.gather(1, drawn), eligible.gather(1, drawn)


def contrast_within(
    rows: Tensor,
    columns: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    mining: Mining | None = None,
) -> Contrast:
    """Contrasts anchors with given samples; gradients flow to both.

    Args:
        rows: ``(A, C)`` anchors, unit vectors.
        columns: ``(M, C)`` samples, unit vectors.
        positives: ``(A, M)`` bool, positives of each anchor.
        negatives: ``(A, M)`` bool, its negatives.
        temperature: t.
        mining: None contrasts with all samples.
    """
    logits = (rows / temperature) @ columns.t()
    if mining is not None:
        scores = logits.detach()
        positives = _hardest_mask(-scores, positives, mining.fraction, mining.num_positives, mining.seeds)
        negatives = _hardest_mask(scores, negatives, mining.fraction, mining.num_negatives, mining.seeds)
    num_positives, num_negatives = positives.sum(dim=1), negatives.sum(dim=1)
    # The lowest number instead of -inf keeps an anchor without a negative finite.
    masked = logits.masked_fill(~negatives, torch.finfo(logits.dtype).min)
    gaps = masked.logsumexp(dim=1, keepdim=True) - logits
    losses = (F.softplus(gaps, threshold=40) * positives).sum(dim=1) / num_positives.clamp(min=1)
    cosines = logits.detach() * temperature
    return Contrast(
        losses,
        num_positives,
        (cosines * positives).sum(dim=1) / num_positives.clamp(min=1),
        (cosines * negatives).sum(dim=1) / num_negatives.clamp(min=1),
    )


def _hardest_mask(scores: Tensor, candidates: Tensor, fraction: float, number: int, seeds: Tensor) -> Tensor:
    masked = scores.masked_fill(~candidates, -torch.inf)
    columns, valid = draw_hardest(masked, candidates.sum(dim=1), fraction, number, seeds)
    return torch.zeros_like(candidates).scatter_(1, columns, valid)
