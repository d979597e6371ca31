"""Contrast of pixels with what is stored of other images; see ``ops/contrast_seg.py`` for the loss.

Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regseg_d2.ops.contrast_seg import Mining, draw_hardest
from regseg_d2.ops.known_gradients import with_gradient
from regseg_d2.ops.stored_contrast import (
    Contrast,
    Memory,
    contrast_with_stored,
    own_rows,
    pair_losses,
    pieces,
    weighted_sums,
)

# Similarities of a block of anchors, which all have to be there to know the hardest.
_MAX_LOGITS = 2**26


def contrast_with_memories(
    anchors: Tensor,
    classes: Tensor,
    memories: Sequence[Memory],
    temperature: float,
    mining: Mining | None = None,
) -> Contrast:
    """Contrasts anchors with stored samples of all classes; gradients flow to the anchors alone.

    The gradient is taken at once, see :func:`with_gradient`.

    Args:
        anchors: ``(A, C)`` unit vectors.
        classes: ``(A,)`` their classes.
        memories: their samples count together.
        temperature: t, at least ``MIN_TEMPERATURE``.
        mining: None contrasts with all samples.
    """
    if mining is None:
        return contrast_with_stored(anchors, classes, memories, temperature)
    with torch.no_grad():
        contrast, gradients = _contrast_with_hardest(anchors, classes, memories, temperature, mining)
    return contrast._replace(losses=with_gradient(anchors, contrast.losses, gradients))


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
    losses, pulls, num_positives = pair_losses(gaps, is_positive)
    # A row of -inf only has a softmax of nan; its anchor pulls at nothing either.
    shares = torch.where(is_negative, masked.softmax(dim=1), 0.0)
    weights = torch.cat([-pulls, shares * pulls.sum(dim=1, keepdim=True)], dim=1)
    items = torch.cat([positives, negatives], dim=1)
    gradients = torch.zeros_like(anchors)
    offset = 0
    for memory in memories:
        here = (items >= offset) & (items < offset + memory.filled.numel())
        numbers = torch.where(here, items - offset, 0)
        gradients += weighted_sums(memory.rows.flatten(0, 1), numbers, weights * here)
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
        for _, _, rows in pieces(memory, queries):
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
        [own_rows(classes, memory) + offset for memory, offset in zip(memories, offsets, strict=True)], dim=1
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
