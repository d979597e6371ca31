"""Positive-Negative Equal contrastive loss.

Source: Wang, Li, Li, Xuan, Zhang, Wang, "Positive-Negative Equal Contrastive Loss for Semantic
Segmentation". The anchors are misclassified pixels, the samples correctly classified ones.

A pixel number counts the pixels of a batch ``(N, h, w)`` in that order. A *pool* is what anchors and
samples are drawn from: one image, or the batch of all processes. A pixel of class k that is predicted as
class l belongs to the pair (l, k) of its pool, numbered ``(pool * K + k) * K + l``; *group* ``pool * K +
k`` is class k of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.common.distributed import all_reduce_sum, gather_rows, rank, world_size
from regseg_d2.ops.grouped_products import log_sums_within_sets, pixel_rows, tile_groups
from regseg_d2.ops.sampling import GroupOrder, compact, group_order

SCOPES = ("image", "batch")
CONTRASTS = ("pne", "asymmetric")
POSITIVE_WEIGHTS = ("softmax", "logit", "none")
NO_NEGATIVES = ("skip", "exclude", "anchors")


@dataclass(frozen=True)
class Construction:
    """How anchors and samples are put together.

    Attributes:
        num_classes: number of classes K.
        num_samples: positives of an anchor, and negatives: |P| = |N|.
        max_anchors: anchors of a set at most.
        scope: ``"image"`` or ``"batch"``: what a pool is.
        individual_anchor_sets: a set of anchors is a pair; else it is a group, whatever its pixels are
            predicted as (section 3.3.1).
        corresponding_negatives: negatives are pixels of the classes that the set's pixels are predicted as;
            else of all classes but the anchor's (section 3.3.2).
        no_negatives: what becomes of a set without a negative. ``"skip"``: its anchors have no loss and count
            in |S|, as Eq. 9 has it: the sum over no negative is 0, log(1 + 0) too, and |S| is the number of
            misclassified pixels. ``"exclude"``: they do not count either. ``"anchors"``: they are their own
            negatives (published code).
    """

    num_classes: int
    num_samples: int = 100
    max_anchors: int = 200
    scope: str = "image"
    individual_anchor_sets: bool = True
    corresponding_negatives: bool = True
    no_negatives: str = "skip"

    def num_pools(self, num_images: int) -> int:
        """Number of pools of a batch of this process."""
        return num_images if self.scope == "image" else 1


@dataclass(frozen=True)
class RandomBits:
    """Uniform long numbers in ``[0, 2**32)``.

    Attributes:
        anchors: ``(N, P)``, decide which anchors are drawn.
        samples: ``(N, P)``, decide which samples are drawn.
        repeats: ``(groups, S)``, for groups with fewer than S pixels, which are drawn with replacement.
        union_repeats: the same for negatives of several classes.
    """

    anchors: Tensor
    samples: Tensor
    repeats: Tensor
    union_repeats: Tensor


@dataclass(frozen=True)
class Draw:
    """Which pixels are contrasted with which; indices only.

    Attributes:
        anchors: ``(A,)`` pixel numbers of this process, ascending where they count.
        counted: ``(A,)`` bool, which of them are anchors.
        samples: ``(U, S)`` pixel numbers of the sets of samples, over all processes where they share a pool.
        positives: ``(A,)`` the anchor's set of positives in ``samples``; -1 where it does not count.
        negatives: ``(A,)`` its set of negatives; -1 where it has none but other anchors.
        crowd_sets: ``(Q,)`` set of each anchor, of all that share a pool, that has no negatives but the
            anchors of its set; sorted by set, -1 at the end.
        crowd_ranks: ``(Q,)`` number of that anchor in its set.
        crowd_places: ``(A,)`` place of an anchor in the crowd; Q where it is not in it.
        first_of_set: ``(A,)`` bool, true for one anchor of each set.
        num_counted: this process's share of |S| of Eq. 9: its anchors, and the pixels that have no loss
            for want of a negative.
    """

    anchors: Tensor
    counted: Tensor
    samples: Tensor
    positives: Tensor
    negatives: Tensor
    crowd_sets: Tensor
    crowd_ranks: Tensor
    crowd_places: Tensor
    first_of_set: Tensor
    num_counted: Tensor


def draw_pixels(labels: Tensor, predictions: Tensor, how: Construction, bits: RandomBits) -> Draw:
    """Draws anchors and samples.

    A set of samples is drawn once for each class and pool and serves all sets of anchors that need it:
    each of them still meets a uniform sample of the pixels it asks for. Sets of anchors without a
    positive are left out.

    Args:
        labels: ``(N, P)`` class ids, void is negative.
        predictions: ``(N, P)`` class ids.
        how: see :class:`Construction`.
        bits: see :class:`RandomBits`.
    """
    num_images, num_pixels = labels.shape
    num_classes = how.num_classes
    num_groups = how.num_pools(num_images) * num_classes
    offset = rank() * num_images * num_pixels if how.scope == "batch" else 0
    right_groups, pairs, sample_bits, anchor_bits = _pool(labels, predictions, how, bits)

    right = group_order(right_groups, num_groups, sample_bits)
    classes, found = torch.div(pairs, num_classes, rounding_mode="floor"), pairs >= 0
    sets = pairs if how.individual_anchor_sets else classes
    num_sets = num_groups * num_classes if how.individual_anchor_sets else num_groups
    in_sets = group_order(sets, num_sets, anchor_bits)
    ranks = in_sets.rank_in_group()
    kept = found & (ranks < how.max_anchors) & (right.counts[classes.clamp(min=0)] > 0)

    samples, slots = _compact_sets(*right.draw(how.num_samples, bits.repeats))
    if how.individual_anchor_sets and how.corresponding_negatives:
        negative_slots = slots[_group_of_prediction(pairs.clamp(min=0), num_classes)]
    else:
        allowed = _allowed_negatives(pairs, num_groups, how)
        unions = _draw_unions(right, sample_bits, allowed, how.num_samples, bits.union_repeats)
        union_samples, union_slots = _compact_sets(*unions)
        negative_slots = torch.where(union_slots >= 0, union_slots + len(samples), -1)[classes.clamp(min=0)]
        samples = torch.cat([samples, union_samples])
    contrasted = kept if how.no_negatives == "anchors" else kept & (negative_slots >= 0)
    in_mean = kept if how.no_negatives == "skip" else contrasted

    crowd, crowd_counted, crowd_places = _gather_crowd(in_sets, contrasted & (negative_slots < 0), how)
    own = slice(offset, offset + num_images * num_pixels)
    anchors, counted = compact(contrasted[own])
    pooled = anchors + offset
    return Draw(
        anchors=anchors,
        counted=counted,
        samples=samples,
        positives=torch.where(counted, slots[classes[pooled].clamp(min=0)], -1),
        negatives=torch.where(counted, negative_slots[pooled], -1),
        crowd_sets=torch.where(crowd_counted, sets[crowd], -1),
        crowd_ranks=ranks[crowd],
        crowd_places=crowd_places[pooled],
        first_of_set=counted & (ranks[pooled] == 0),
        num_counted=in_mean[own].sum(),
    )


def _gather_crowd(in_sets: GroupOrder, in_crowd: Tensor, how: Construction) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of a mask ``(M,)`` by set, which of them count, and the place of each pixel, or Q."""
    if how.no_negatives != "anchors":
        # There is no crowd, whatever a device without data-dependent sizes would gather for it.
        return in_sets.items[:0], in_crowd[:0], torch.zeros_like(in_sets.items)
    found, counted = compact(in_crowd[in_sets.items])
    crowd = in_sets.items[found]
    count = len(crowd)
    numbers = torch.arange(count, device=crowd.device)
    places = torch.full_like(in_sets.items, count)
    places.scatter_(0, crowd, torch.where(counted, numbers, count))
    return crowd, counted, places


def _pool(labels: Tensor, predictions: Tensor, how: Construction, bits: RandomBits) -> tuple[Tensor, ...]:
    """Groups of the right pixels, pairs of the wrong ones (else -1) and bits, of all that share pools."""
    num_classes = how.num_classes
    pools = torch.zeros_like(labels)
    if how.scope == "image":
        pools += torch.arange(len(labels), device=labels.device).unsqueeze(1)
    classes = pools * num_classes + labels
    valid = labels >= 0
    right = labels == predictions
    right_groups = torch.where(valid & right, classes, -1)
    pairs = torch.where(valid & ~right, classes * num_classes + predictions, -1)
    columns = [right_groups.flatten(), pairs.flatten(), bits.samples.flatten(), bits.anchors.flatten()]
    if how.scope == "batch" and world_size() > 1:
        columns = list(gather_rows(torch.stack(columns, dim=1)).t().contiguous())
    return tuple(columns)


def _group_of_prediction(pairs: Tensor, num_classes: int) -> Tensor:
    pools = pairs // (num_classes * num_classes)
    return pools * num_classes + pairs % num_classes


def _compact_sets(items: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sets of samples that exist, ``(U, S)``, and where each of all ``(G,)`` sets is among them, or -1."""
    exists = valid.any(dim=1)
    used, counted = compact(exists)
    slots = torch.full((len(items),), -1, dtype=torch.long, device=items.device)
    slots.scatter_(0, used, torch.where(counted, torch.arange(len(used), device=used.device), -1))
    return items[used], slots


def _allowed_negatives(pairs: Tensor, num_groups: int, how: Construction) -> Tensor:
    """Bool ``(pools, K, K)``: may a pixel of the last index's class be a negative of the one before?"""
    num_classes = how.num_classes
    counts = torch.zeros(num_groups * num_classes + 1, dtype=torch.long, device=pairs.device)
    counts.scatter_(0, torch.where(pairs >= 0, pairs, num_groups * num_classes), 1)
    is_pair = counts[:-1].view(num_groups // num_classes, num_classes, num_classes) > 0
    if how.corresponding_negatives:
        return is_pair
    # Classes without an anchor need no negatives.
    return is_pair.any(dim=2, keepdim=True) & ~torch.eye(num_classes, dtype=torch.bool, device=pairs.device)


def _draw_unions(
    right: GroupOrder, bits: Tensor, allowed: Tensor, num_samples: int, repeats: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws from the union of several classes, for each class of each pool.

    The S pixels of a union with the smallest bits are among the S smallest of each of its classes.

    Args:
        right: order of the pixels that may be drawn, by group.
        bits: bits of each pixel.
        allowed: ``(pools, K, K)`` bool: the classes (last index) of each union.
        num_samples: samples S.
        repeats: bits ``(pools * K, S)`` for unions that have fewer than S pixels.

    Returns:
        Pixels ``(pools * K, S)`` and bool ``(pools * K, S)``, which of them count.
    """
    num_pools, num_classes, _ = allowed.shape
    items, valid = right.draw(num_samples)
    keys = torch.where(valid, bits[items], 2**32).view(num_pools, -1)
    order = keys.argsort(dim=1, stable=True)
    items = items.view(num_pools, -1).gather(1, order)
    valid = valid.view(num_pools, -1).gather(1, order)
    classes = (order // num_samples).unsqueeze(1).expand(-1, num_classes, -1)
    usable = allowed.gather(2, classes) & valid.unsqueeze(1)
    running = usable.cumsum(dim=2, dtype=torch.int32)
    counts = running[:, :, -1:].long()
    repeats = (repeats.view(num_pools, num_classes, num_samples) * counts) >> 32
    slots = torch.arange(num_samples, device=items.device).expand_as(repeats)
    slots = torch.where(counts >= num_samples, slots, repeats)
    places = torch.searchsorted(running, (slots + 1).int()).clamp(max=items.shape[1] - 1)
    drawn = items.unsqueeze(1).expand(-1, num_classes, -1).gather(2, places)
    return drawn.flatten(0, 1), (counts > 0).expand_as(drawn).flatten(0, 1)


@dataclass(frozen=True)
class Contrast:
    """What the loss of each anchor is made of.

    Attributes:
        losses: ``(A,)`` losses, zero where an anchor does not count.
        positive_similarity: ``(A,)`` mean product with the positives, without gradient.
        negative_similarity: ``(A,)`` mean product with the negatives, without gradient.
    """

    losses: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def contrast_anchors(
    embeddings: Tensor,
    sample_weights: Tensor | None,
    draw: Draw,
    how: Construction,
    temperature: float = 1.0,
    asymmetric: bool = False,
    detach_samples: bool = True,
) -> Contrast:
    """The loss of each anchor, Eq. 8, or Eq. 1.

    Eq. 8 is ``log(1 + sum_n e^(i.n/tau) / sum_p (w_p / mean w) e^(i.p/tau))``, computed as the softplus
    of a difference of log sums. Eq. 1, ``mean_p -log(e^(i.p/tau) / (e^(i.p/tau) + sum_n e^(i.n/tau)))``,
    has no weights.

    Where an anchor has no negatives but the anchors of its set (itself among them), the sum over those,
    up to S of them, is scaled to S terms, so that negatives and positives stay equal in number.

    Args:
        embeddings: ``(N, C, h, w)``, of any length; made unit vectors here.
        sample_weights: ``(N, 1, h, w)`` weight w of each pixel as a positive; None: all alike.
        draw: see :func:`draw_pixels`.
        how: what ``draw`` was made with.
        temperature: tau.
        asymmetric: take Eq. 1.
        detach_samples: positives and negatives are constants (published code).
    """
    rows = F.normalize(pixel_rows(embeddings, draw.anchors), dim=1, eps=1e-6)
    table = _sample_rows(embeddings.detach() if detach_samples else embeddings, draw.samples, how)
    table = F.normalize(table, dim=2, eps=1e-6)
    scaled = rows / temperature
    positives = tile_groups(draw.positives, len(table))
    negatives = tile_groups(draw.negatives, len(table))
    to_positives = positives.products(scaled, table)
    to_negatives = negatives.products(scaled, table)
    crowd_sums, crowd_means = _crowd_sums(rows, draw, how, temperature, detach_samples)
    has_negatives = draw.negatives >= 0
    negative_sums = torch.where(
        has_negatives, negatives.collect(to_negatives.logsumexp(dim=2)), crowd_sums[draw.crowd_places]
    )
    if asymmetric:
        opposed = positives.spread(negative_sums).unsqueeze(2)
        losses = positives.collect(F.softplus(opposed - to_positives).mean(dim=2))
    else:
        weighted = to_positives
        if sample_weights is not None:
            weights = _sample_rows(sample_weights, draw.samples, how).squeeze(2)
            weighted = to_positives + _relative_log(weights)[positives.groups].unsqueeze(1)
        losses = F.softplus(negative_sums - positives.collect(weighted.logsumexp(dim=2)))
    crowd_similarity = crowd_means[draw.crowd_places] * temperature
    negative_similarity = negatives.collect(to_negatives.detach().mean(dim=2)) * temperature
    return Contrast(
        losses=torch.where(draw.counted, losses, 0),
        positive_similarity=positives.collect(to_positives.detach().mean(dim=2)) * temperature,
        negative_similarity=torch.where(has_negatives, negative_similarity, crowd_similarity),
    )


def _sample_rows(maps: Tensor, samples: Tensor, how: Construction) -> Tensor:
    """Values ``(U, S, C)`` of samples that may lie on any process which shares the pool."""
    pixels = samples.flatten()
    order = pixels.argsort()
    pixels = pixels[order]
    if how.scope == "image":
        rows = pixel_rows(maps, pixels)
    else:
        num_pixels = len(maps) * maps.shape[2] * maps.shape[3]
        own = pixels - rank() * num_pixels
        rows = pixel_rows(maps, own.clamp(0, num_pixels - 1))
        rows = all_reduce_sum(rows * ((own >= 0) & (own < num_pixels)).unsqueeze(1))
    return torch.zeros_like(rows).index_copy(0, order, rows).view(*samples.shape, maps.shape[1])


def _crowd_sums(
    rows: Tensor, draw: Draw, how: Construction, temperature: float, detach_samples: bool
) -> tuple[Tensor, Tensor]:
    """Log sums over negatives, and mean products, of the anchors whose negatives are anchors."""
    count = len(draw.crowd_sets)
    crowd = rows.new_zeros(count + 1, rows.shape[1]).index_copy(0, draw.crowd_places, rows)[:count]
    if how.scope == "batch" and how.no_negatives == "anchors":
        crowd = all_reduce_sum(crowd)
    columns = crowd.detach() if detach_samples else crowd
    return log_sums_within_sets(
        crowd / temperature, columns, draw.crowd_sets, draw.crowd_ranks, how.max_anchors, how.num_samples
    )


def _relative_log(weights: Tensor) -> Tensor:
    """``log(w / mean w)`` of Eq. 8, ``(U, S)``; a weight that is not positive counts as (almost) nothing."""
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return (weights / weights.mean(dim=1, keepdim=True)).log()
