"""Contrast of pixels with what is stored of other images; see ``ops/contrast_seg.py`` for the loss.

Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regseg_d2.ops.contrast_seg import Contrast, Mining, draw_hardest
from regseg_d2.ops.known_gradients import with_row_gradients
from regseg_d2.ops.sampling import compact

# Rows of a memory that are worked off at a time: on the CPU as many as its cache holds, elsewhere as
# many as keep the similarities to them below a number of elements.
_CACHED_ROWS = 2048
_MAX_LOGITS = 2**26
# Elements of a piece of a memory of another type than the anchors that is converted at a time.
_CONVERTED = 2**22


class Memory(NamedTuple):
    """Stored samples.

    Attributes:
        rows: ``(K, T, C)`` unit vectors, T a class, zeros where not filled. Any floating type.
        filled: ``(K, T)`` bool.
    """

    rows: Tensor
    filled: Tensor


def contrast_with_memories(
    anchors: Tensor,
    classes: Tensor,
    memories: Sequence[Memory],
    temperature: float,
    mining: Mining | None = None,
) -> Contrast:
    """Contrasts anchors with stored samples of all classes; gradients flow to the anchors alone.

    The gradient is taken at once, see :func:`with_row_gradients`.

    Args:
        anchors: ``(A, C)`` unit vectors.
        classes: ``(A,)`` their classes.
        memories: their samples count together.
        temperature: t; 0.025 or more, or exponentials of float32 vanish.
        mining: None contrasts with all samples.
    """
    with torch.no_grad():
        if mining is None:
            contrast, gradients = _contrast_with_all(anchors, classes, memories, temperature)
        else:
            contrast, gradients = _contrast_with_hardest(anchors, classes, memories, temperature, mining)
    return contrast._replace(losses=with_row_gradients(anchors, contrast.losses, gradients))


def _contrast_with_all(
    anchors: Tensor, classes: Tensor, memories: Sequence[Memory], temperature: float
) -> tuple[Contrast, Tensor]:
    # Products of unit vectors are at most 1: this keeps exponentials in [0, 1] without a first pass.
    shift = 1.0 / temperature
    queries = anchors / temperature
    total, sums = queries.new_zeros(2, len(queries)).unbind()
    pushes = torch.zeros_like(queries)
    own_logits = [queries.new_empty(len(queries), memory.filled.shape[1]) for memory in memories]
    for memory, own in zip(memories, own_logits, strict=True):
        for part, slots in _chunks(memory, len(queries)):
            rows = memory.rows[part, slots].to(queries.dtype).flatten(0, 1)
            filled = memory.filled[part, slots]
            logits = (queries @ rows.t()).unflatten(1, filled.shape)
            sums += logits.sum(dim=(1, 2))
            _take_out_own(logits, classes - part.start, own[:, slots])
            scores = logits.sub_(shift).exp_().flatten(1)
            # Rows that are not filled are zeros: they add nothing to the second product by themselves.
            total += scores @ filled.flatten().to(scores.dtype)
            pushes.addmm_(scores, rows)
    own = torch.cat(own_logits, dim=1)
    positives = torch.cat([memory.filled[classes] for memory in memories], dim=1)
    gaps = (total.log() + shift).unsqueeze(1) - own
    losses, pulls, num_positives = _pair_losses(gaps, positives)
    pushed = pulls.sum(dim=1) / torch.where(total > 0, total, 1.0)
    gradients = pushes * pushed.unsqueeze(1)
    sizes = [memory.filled.shape[1] for memory in memories]
    for memory, part_pulls in zip(memories, pulls.split(sizes, dim=1), strict=True):
        gradients -= _weighted_sums(memory.rows.flatten(0, 1), _own_rows(classes, memory), part_pulls)
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


def _pair_losses(gaps: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _chunks(memory: Memory, num_anchors: int) -> Iterator[tuple[slice, slice]]:
    """Classes and slots of a memory that are worked off at a time: several classes, or a part of one.

    Together they are all rows, in their order.
    """
    num_classes, size = memory.filled.shape
    num_rows = _CACHED_ROWS if memory.rows.device.type == "cpu" else _MAX_LOGITS // max(num_anchors, 1)
    length = max(1, num_rows // size)
    parts = -(-size // max(num_rows, 1))
    num_slots = -(-size // parts)
    for start in range(0, num_classes, length):
        for slot in range(0, size, num_slots):
            yield slice(start, start + length), slice(slot, slot + num_slots)


def _own_rows(classes: Tensor, memory: Memory) -> Tensor:
    """Numbers ``(A, T)`` of the rows of each anchor's class."""
    size = memory.filled.shape[1]
    return classes.unsqueeze(1) * size + torch.arange(size, device=classes.device)


def _weighted_sums(rows: Tensor, items: Tensor, weights: Tensor) -> Tensor:
    """Sums ``(A, C)`` of the ``rows`` ``(M, C)`` numbered ``items (A, J)`` with ``weights (A, J)``."""
    if rows.dtype == weights.dtype:
        return F.embedding_bag(items, rows, mode="sum", per_sample_weights=weights)
    sums = weights.new_zeros(len(weights), rows.shape[1])
    length = max(1, _CONVERTED // max(1, len(weights) * rows.shape[1]))
    for part, part_weights in zip(items.split(length, dim=1), weights.split(length, dim=1), strict=True):
        sums += torch.bmm(part_weights.unsqueeze(1), rows[part].to(weights.dtype)).squeeze(1)
    return sums


def _contrast_with_hardest(
    anchors: Tensor, classes: Tensor, memories: Sequence[Memory], temperature: float, mining: Mining
) -> tuple[Contrast, Tensor]:
    """Anchors in blocks, as all their similarities are needed at once to know the hardest."""
    length = max(1, _MAX_LOGITS // sum(memory.filled.numel() for memory in memories))
    results = [
        _contrast_block(
            anchors[start : start + length],
            classes[start : start + length],
            memories,
            temperature,
            mining._replace(seeds=mining.seeds[start : start + length]),
        )
        for start in range(0, max(len(anchors), 1), length)
    ]
    contrasts, gradients = zip(*results, strict=True)
    return Contrast(*map(torch.cat, zip(*contrasts, strict=True))), torch.cat(gradients)


def _contrast_block(
    anchors: Tensor, classes: Tensor, memories: Sequence[Memory], temperature: float, mining: Mining
) -> tuple[Contrast, Tensor]:
    logits = _all_logits(anchors / temperature, memories)
    positives, is_positive = _draw_positives(logits, classes, memories, mining)
    # In place: the positives' own logits are taken out before.
    positive_logits = logits.gather(1, positives)
    negatives, is_negative = _draw_negatives(logits, classes, memories, mining)
    negative_logits = logits.gather(1, negatives)
    masked = torch.where(is_negative, negative_logits, -torch.inf)
    gaps = masked.logsumexp(dim=1, keepdim=True) - positive_logits
    losses, pulls, num_positives = _pair_losses(gaps, is_positive)
    # A row of -inf only has a softmax of nan; its anchor pulls at nothing either.
    shares = torch.where(is_negative, masked.softmax(dim=1), 0.0)
    weights = torch.cat([-pulls, shares * pulls.sum(dim=1, keepdim=True)], dim=1)
    items = torch.cat([positives, negatives], dim=1)
    gradients = torch.zeros_like(anchors)
    offset = 0
    for memory in memories:
        here = (items >= offset) & (items < offset + memory.filled.numel())
        numbers = torch.where(here, items - offset, 0)
        gradients += _weighted_sums(memory.rows.flatten(0, 1), numbers, weights * here)
        offset += memory.filled.numel()
    contrast = Contrast(
        losses,
        num_positives,
        (positive_logits * is_positive).sum(dim=1) * temperature / num_positives.clamp(min=1),
        torch.where(is_negative, negative_logits, 0.0).sum(dim=1)
        * temperature
        / is_negative.sum(dim=1).clamp(min=1),
    )
    return contrast, gradients / temperature


def _all_logits(queries: Tensor, memories: Sequence[Memory]) -> Tensor:
    """Products ``(A, M)`` with the rows of all memories, one after the other."""
    logits = queries.new_empty(len(queries), sum(memory.filled.numel() for memory in memories))
    start = 0
    for memory in memories:
        for part, slots in _chunks(memory, len(queries)):
            rows = memory.rows[part, slots].to(queries.dtype).flatten(0, 1)
            torch.mm(queries, rows.t(), out=logits[:, start : start + len(rows)])
            start += len(rows)
    return logits


def _draw_positives(
    logits: Tensor, classes: Tensor, memories: Sequence[Memory], mining: Mining
) -> tuple[Tensor, Tensor]:
    offsets = [0]
    for memory in memories[:-1]:
        offsets.append(offsets[-1] + memory.filled.numel())
    own = torch.cat(
        [_own_rows(classes, memory) + offset for memory, offset in zip(memories, offsets, strict=True)], dim=1
    )
    filled = torch.cat([memory.filled[classes] for memory in memories], dim=1)
    scores = torch.where(filled, -logits.gather(1, own), -torch.inf)
    columns, valid = draw_hardest(
        scores, filled.sum(dim=1), mining.fraction, mining.num_positives, mining.seeds
    )
    return own.gather(1, columns), valid


def _draw_negatives(
    logits: Tensor, classes: Tensor, memories: Sequence[Memory], mining: Mining
) -> tuple[Tensor, Tensor]:
    """Sets the logits of what is no negative to ``-inf``."""
    start = 0
    counts = torch.zeros_like(classes)
    others = torch.arange(len(memories[0].filled), device=classes.device) != classes.unsqueeze(1)
    for memory in memories:
        part = logits[:, start : start + memory.filled.numel()].view(len(logits), *memory.filled.shape)
        part.masked_fill_(~(others.unsqueeze(2) & memory.filled), -torch.inf)
        counts += (others * memory.filled.sum(dim=1)).sum(dim=1)
        start += memory.filled.numel()
    return draw_hardest(logits, counts, mining.fraction, mining.num_negatives, mining.seeds)
