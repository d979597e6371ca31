"""Supervised contrast of vectors with stored ones: what region and pixel contrast have in common.

For a vector a of class i and stored positives p and negatives n (of other classes), all of length 1:
``l_p = -log(e^{a p / t} / (e^{a p / t} + S))`` with ``S = sum_n e^{a n / t}``; the loss of a is the mean of
``l_p`` over its positives. That is ``softplus(log S - a p / t)``: zero without a negative, and by definition
without a positive. Hu et al., "Region-aware Contrastive Learning", ICCV 2021, Eq. 4, and Wang et al.,
"Exploring Cross-Image Pixel Contrast", ICCV 2021, Eq. 3, both write it so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.ops.known_gradients import with_gradient
from regseg_d2.ops.sampling import compact

# Rows of a memory that are worked off at a time: on the CPU as many as its cache holds, elsewhere as
# many as keep the similarities to them below a number of elements.
_CACHED_ROWS = 2048
_MAX_LOGITS = 2**26
# Elements of a piece of a memory of another type than the anchors that is converted at a time.
_CONVERTED = 2**22
# Below this temperature exponentials of float32 vanish between the largest and the smallest product.
MIN_TEMPERATURE = 0.025


class Contrast(NamedTuple):
    """What is known of each anchor.

    Attributes:
        losses: ``(A,)``; zero without a positive.
        num_positives: ``(A,)`` long, positives that it was contrasted with.
        positive_similarity: ``(A,)`` mean cosine with its positives, zero without one; no gradient.
        negative_similarity: ``(A,)`` mean cosine with its negatives, zero without one; no gradient.
    """

    losses: Tensor
    num_positives: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class Memory(NamedTuple):
    """Stored samples.

    Attributes:
        rows: ``(K, T, C)`` unit vectors, T a class, zeros where not filled. Any floating type.
        filled: ``(K, T)`` bool.
    """

    rows: Tensor
    filled: Tensor


def contrast_with_stored(
    anchors: Tensor,
    classes: Tensor,
    memories: Sequence[Memory],
    temperature: float,
    own_slots: Tensor | None = None,
) -> Contrast:
    """Contrasts anchors with all stored samples, piece by piece; gradients flow to the anchors alone.

    The gradient is taken at once, see :func:`with_gradient`; the memories may be overwritten before the
    backward pass.

    Args:
        anchors: ``(A, C)`` unit vectors.
        classes: ``(A,)`` their classes.
        memories: their samples count together.
        temperature: t, at least ``MIN_TEMPERATURE``.
        own_slots: ``(A,)``: the slot of the (only) memory that holds the anchor itself, which is not its own
            positive. None: it is not stored.
    """
    positives = torch.cat([memory.filled[classes] for memory in memories], dim=1)
    if own_slots is not None:
        slots = torch.arange(positives.shape[1], device=positives.device)
        positives = positives & (slots != own_slots.unsqueeze(1))
    with torch.no_grad():
        contrast, gradients = _contrast(anchors, classes, memories, positives, temperature)
    return contrast._replace(losses=with_gradient(anchors, contrast.losses, gradients))


def _contrast(
    anchors: Tensor,
    classes: Tensor,
    memories: Sequence[Memory],
    positives: Tensor,
    temperature: float,
) -> tuple[Contrast, Tensor]:
    # Products of unit vectors are at most 1: this keeps exponentials in [0, 1] without a first pass.
    shift = 1.0 / temperature
    queries = anchors / temperature
    total, sums = queries.new_zeros(2, len(queries)).unbind()
    pushes = torch.zeros_like(queries)
    own_logits = [queries.new_empty(len(queries), memory.filled.shape[1]) for memory in memories]
    for memory, own in zip(memories, own_logits, strict=True):
        for part, slots, rows in pieces(memory, queries):
            filled = memory.filled[part, slots]
            logits = (queries @ rows.t()).unflatten(1, filled.shape)
            sums += logits.sum(dim=(1, 2))
            _take_out_own(logits, classes - part.start, own[:, slots])
            scores = logits.sub_(shift).exp_().flatten(1)
            # Rows that are not filled are zeros: they add nothing to the second product by themselves.
            total += scores @ filled.flatten().to(scores.dtype)
            pushes.addmm_(scores, rows)
    own = torch.cat(own_logits, dim=1)
    gaps = (total.log() + shift).unsqueeze(1) - own
    losses, pulls, num_positives = pair_losses(gaps, positives)
    pushed = pulls.sum(dim=1) / torch.where(total > 0, total, 1.0)
    gradients = pushes * pushed.unsqueeze(1)
    sizes = [memory.filled.shape[1] for memory in memories]
    for memory, part_pulls in zip(memories, pulls.split(sizes, dim=1), strict=True):
        gradients -= weighted_sums(memory.rows.flatten(0, 1), own_rows(classes, memory), part_pulls)
    num_filled = torch.stack([memory.filled.sum(dim=1) for memory in memories]).sum(dim=0)
    num_negatives = num_filled.sum() - num_filled[classes]
    contrast = Contrast(
        losses,
        num_positives,
        (own * positives).sum(dim=1) * temperature / num_positives.clamp(min=1),
        (sums - own.sum(dim=1)) * temperature / num_negatives.clamp(min=1),
    )
    return contrast, gradients / temperature


def _take_out_own(logits: Tensor, classes: Tensor, own: Tensor) -> None:
    """Moves the logits of anchors with their own class from ``logits`` to ``own``; ``-inf`` stays there.

    Args:
        logits: ``(A, K', T)``, of some of the classes.
        classes: ``(A,)`` class of each anchor, counted from the first of these.
        own: ``(A, T)``; those of anchors of other classes stay as they are.
    """
    items, valid = compact((classes >= 0) & (classes < logits.shape[1]))
    at = classes[items].clamp(0, logits.shape[1] - 1)
    chosen, valid = logits[items, at], valid.unsqueeze(1)
    own[items] = torch.where(valid, chosen, own[items])
    logits[items, at] = torch.where(valid, -torch.inf, chosen)


def pair_losses(gaps: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of anchors, how strongly each pair pulls, and numbers of positives.

    Args:
        gaps: ``(A, J)``: ``log S - i p / t``.
        positives: ``(A, J)`` bool.

    Returns:
        ``(A,)``, ``(A, J)`` and ``(A,)``.
    """
    num_positives = positives.sum(dim=1)
    share = 1.0 / num_positives.clamp(min=1).unsqueeze(1).to(gaps.dtype)
    gaps = torch.where(positives, gaps, -torch.inf)
    losses = (F.softplus(gaps, threshold=40) * share).sum(dim=1)
    return losses, gaps.sigmoid() * share, num_positives


def pieces(memory: Memory, queries: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Pieces of a memory that are worked off at a time, in order: several classes, or a part of one.

    Args:
        memory: the memory.
        queries: ``(A, C)`` what its rows are compared with.

    Yields:
        Classes, slots, and their rows ``(M, C)`` in the type of the queries, to be used at once.
    """
    num_classes, size = memory.filled.shape
    on_cpu = memory.rows.device.type == "cpu"
    num_rows = _CACHED_ROWS if on_cpu else _MAX_LOGITS // max(len(queries), 1)
    length = max(1, num_rows // size)
    num_parts = -(-size // max(num_rows, 1))
    num_slots = -(-size // num_parts)
    # On the CPU also rows of the right type are copied: products of rows that lie in the cache are so much
    # faster that the copy pays.
    copies = on_cpu or memory.rows.dtype != queries.dtype
    buffer = queries.new_empty(min(length, num_classes) * num_slots if copies else 0, queries.shape[1])
    for start in range(0, num_classes, length):
        for slot in range(0, size, num_slots):
            part, slots = slice(start, start + length), slice(slot, slot + num_slots)
            rows = memory.rows[part, slots]
            if copies:
                piece = buffer[: rows.shape[0] * rows.shape[1]]
                piece.view_as(rows).copy_(rows)
            else:
                piece = rows.flatten(0, 1)
            yield part, slots, piece


def own_rows(classes: Tensor, memory: Memory) -> Tensor:
    """Numbers ``(A, T)`` of the rows of each anchor's class."""
    size = memory.filled.shape[1]
    return classes.unsqueeze(1) * size + torch.arange(size, device=classes.device)


def weighted_sums(rows: Tensor, items: Tensor, weights: Tensor) -> Tensor:
    """Sums ``(A, C)`` of the ``rows`` ``(M, C)`` numbered ``items (A, J)`` with ``weights (A, J)``."""
    if rows.dtype == weights.dtype:
        return F.embedding_bag(items, rows, mode="sum", per_sample_weights=weights)
    sums = weights.new_zeros(len(weights), rows.shape[1])
    length = max(1, _CONVERTED // max(1, len(weights) * rows.shape[1]))
    for part, part_weights in zip(items.split(length, dim=1), weights.split(length, dim=1), strict=True):
        sums += torch.bmm(part_weights.unsqueeze(1), rows[part].to(weights.dtype)).squeeze(1)
    return sums
