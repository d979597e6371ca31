"""Distributions of the scores of right and wrong pixels (RCH, AAAI 2022, Figure 1 a and b)."""

from __future__ import annotations

import numpy as np

KINDS = ("TP", "FP", "FN")
_TP, _FP, _FN = range(3)
# Exponent of the first width of a bin; no network's scores are all nearer to each other.
_FIRST_EXPONENT = -24


class ScoreHistogram:
    """Counts the score of class k at its true positives, false positives and false negatives.

    Bins are ``2**e`` wide, and one begins at 0. Where a score is beyond the last of them, ``e`` grows and
    pairs of bins are merged: the counts are exact, and do not depend on the order of the images.

    Args:
        num_classes: K.
        num_bins: B, a multiple of 4.
    """

    def __init__(self, num_classes: int, num_bins: int) -> None:
        self.counts = np.zeros((len(KINDS), num_classes, num_bins), dtype=np.int64)
        self._exponent = _FIRST_EXPONENT

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins ``(B + 1,)``; a score on one is in the bin above it."""
        bins = self.counts.shape[-1]
        return np.ldexp(np.arange(bins + 1) - bins / 2, self._exponent)

    def add(self, label: np.ndarray, predicted: np.ndarray, own: np.ndarray, largest: np.ndarray) -> None:
        """Adds the valid pixels of an image.

        Args:
            label: ``(P,)`` their classes.
            predicted: ``(P,)`` the classes of the largest score.
            own: ``(P,)`` score of the true class, finite.
            largest: ``(P,)`` score of the predicted class, finite.
        """
        if not len(label):
            return
        wrong = label != predicted
        kinds = np.where(wrong, _FN, _TP)
        self._count(kinds, label, own)
        self._count(np.full(int(wrong.sum()), _FP), predicted[wrong], largest[wrong])

    def _count(self, kinds: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> None:
        if not len(scores):
            return
        _, num_classes, bins = self.counts.shape
        while not (self.edges[0] <= scores.min() and scores.max() < self.edges[-1]):
            self.counts = _merged(self.counts)
            self._exponent += 1
        numbers = np.floor(np.ldexp(scores.astype(np.float64), -self._exponent)).astype(np.int64) + bins // 2
        places = (kinds * num_classes + classes) * bins + numbers
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)


def _merged(counts: np.ndarray) -> np.ndarray:
    """Counts ``(..., B)`` in bins twice as wide."""
    bins = counts.shape[-1]
    wide = np.zeros_like(counts)
    wide[..., bins // 4 : 3 * bins // 4] = counts.reshape(*counts.shape[:-1], bins // 2, 2).sum(axis=-1)
    return wide
