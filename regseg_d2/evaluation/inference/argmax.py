"""The best class of every pixel: faster than ``argmax`` over the first axis, and the same classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from regseg_d2.evaluation.inference.maps import ScoreMaps

# Pixels of a strip: what is kept of it stays in a core's cache while the classes go by.
_STRIP_PIXELS = 1 << 16


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest type that holds the labels of so many classes."""
    return torch.uint8 if num_classes <= 256 else torch.int32


def argmax_classes(scores: Tensor) -> Tensor:
    """Returns ``scores.argmax(dim=0)`` in a small type: the first of the largest; NaN is larger than all.

    Args:
        scores: ``(K, H, W)``.

    Returns:
        ``(H, W)`` labels of ``label_dtype(K)``.
    """
    return _argmax(scores.shape[0], lambda: [(0, scores)])


def argmax_of_maps(maps: ScoreMaps) -> Tensor:
    """Returns ``maps.all_classes().argmax(dim=0)`` without ever holding all classes.

    Args:
        maps: scores of K classes.

    Returns:
        ``(H, W)`` labels of ``label_dtype(K)``.
    """
    return _argmax(maps.num_classes, lambda: ((chunk.start, maps(chunk)) for chunk in maps.chunks()))


def _argmax(num_classes: int, chunks: Callable[[], Iterable[tuple[int, Tensor]]]) -> Tensor:
    """Labels of the largest scores; ``chunks`` gives the scores by classes, each with its first class."""
    best: Tensor | None = None
    labels: Tensor | None = None
    for first, scores in chunks():
        if best is None or labels is None:
            best = scores.new_full(scores.shape[1:], -torch.inf)
            labels = torch.zeros_like(best, dtype=label_dtype(num_classes))
        # NumPy starts an operation in a third of torch's time, which counts in cache-sized pieces.
        if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
            _take_better_in_strips(scores.detach().contiguous().numpy(), best.numpy(), labels.numpy(), first)
        else:
            _take_better(scores, best, labels, first)
    if best is None or labels is None:
        raise ValueError("there are no scores")
    # A maximum is NaN from the first NaN on, and nothing is greater than it.
    if best.isnan().any():
        _label_first_nan(chunks(), labels)
    return labels


def _take_better_in_strips(scores: np.ndarray, best: np.ndarray, labels: np.ndarray, first: int) -> None:
    """Updates the best scores and their labels with further classes, the first of which is ``first``."""
    scores, best, labels = scores.reshape(len(scores), -1), best.reshape(-1), labels.reshape(-1)
    for start in range(0, best.size, _STRIP_PIXELS):
        strip = slice(start, start + _STRIP_PIXELS)
        strip_best, strip_labels = best[strip], labels[strip]
        better = np.empty(strip_best.shape, dtype=bool)
        mask = better.view(np.uint8) if labels.dtype == np.uint8 else better
        candidate = np.empty_like(strip_labels)
        for label, score in enumerate(scores[:, strip], first):
            np.greater(score, strip_best, out=better)
            np.maximum(score, strip_best, out=strip_best)
            # Labels grow from class to class, so the largest is the latest: cheaper than writing where true.
            np.multiply(mask, labels.dtype.type(label), out=candidate)
            np.maximum(strip_labels, candidate, out=strip_labels)


def _take_better(scores: Tensor, best: Tensor, labels: Tensor, first: int) -> None:
    """As above, in a few operations on all pixels."""
    values, places = scores.max(dim=0)
    labels.copy_(torch.where(values > best, (places + first).to(labels.dtype), labels))
    torch.maximum(best, values, out=best)


def _label_first_nan(chunks: Iterable[tuple[int, Tensor]], labels: Tensor) -> None:
    """Writes the first class that is NaN wherever one is."""
    pending = torch.ones_like(labels, dtype=torch.bool)
    for first, scores in chunks:
        nan = scores.isnan()
        new = nan.any(dim=0) & pending
        labels[new] = (nan[:, new].to(torch.uint8).argmax(dim=0) + first).to(labels.dtype)
        pending &= ~new
