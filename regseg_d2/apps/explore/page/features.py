"""Features in few bytes: what a page needs to draw relation maps.

A relation map is the cosine between the feature of one cell and those of all cells of the image (Huang et
al., CAR, ECCV 2022, Fig. 5; Wang et al., RCH, AAAI 2022, Fig. 1). Features of length one are projected onto
the first eigenvectors of their matrix of second moments, over all cells of all images of a run: no other
projection onto as many directions has dot products nearer to the cosines, in their squared errors summed
over all pairs of cells (Eckart and Young, Psychometrika 1936). Coordinates are rounded to int8 and
deflated, one direction after the other, so that any number of first directions can be kept.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from regseg_d2.apps.explore.page.packing import base64_length, base64_text

# Directions that are looked at; int8 says no more about what is behind them.
MOST_DIRECTIONS = 64
# Coordinates of features of length one are at most 1.
LEVELS = 127
# Cells of an image whose cosines with one another are held against those from the page.
CHECKED_CELLS = 48
# Ends a deflated stream: a last block with nothing in it.
_LAST_BLOCK = b"\x03\x00"


def unit_features(feature: np.ndarray) -> np.ndarray:
    """Features of length one, (C, h w) float64, of (C, h, w); those of length zero stay zero."""
    flat = np.asarray(feature, np.float64).reshape(len(feature), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=0), np.finfo(np.float64).tiny)


class Moments:
    """Sums up the second moments of a run's features of length one.

    Attributes:
        total: (C, C) float64.
        count: cells that are not zero.
    """

    def __init__(self) -> None:
        self.total: np.ndarray | None = None
        self.count = 0

    def add(self, feature: np.ndarray) -> None:
        """Adds the cells of one image, (C, h, w)."""
        unit = unit_features(feature)
        moments = unit @ unit.T
        self.total = moments if self.total is None else self.total + moments
        self.count += int(unit.any(0).sum())

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """The first directions (D, C), and what share of the squared length each keeps (D,)."""
        if self.total is None or not self.count:
            size = 1 if self.total is None else len(self.total)
            return np.eye(1, size), np.zeros(1)
        values, vectors = np.linalg.eigh(self.total)
        first = np.argsort(-values, kind="stable")[:MOST_DIRECTIONS]
        directions = vectors[:, first].T
        # An eigenvector has no sign of its own: its largest coordinate is positive.
        largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
        return directions * np.sign(largest), np.maximum(values[first], 0) / self.count


class QuantizedRun:
    """The features of one run on all images of the page.

    Attributes:
        shares: (D,) of the squared length that each direction keeps.
        maps: of each image the deflated coordinates, one direction after the other.
    """

    def __init__(self, directions: np.ndarray, shares: np.ndarray) -> None:
        self._directions = directions
        self.shares = shares
        self.maps: list[list[bytes]] = []
        # Sums over checked pairs of cells, by the number of directions that are kept.
        self._squared_errors = np.zeros(len(directions))
        self._pairs = 0

    def add(self, feature: np.ndarray) -> None:
        """Quantises the features (C, h, w) of one more image."""
        coordinates = quantized(feature, self._directions)
        cells = np.random.default_rng(len(self.maps)).permutation(coordinates.shape[1])[:CHECKED_CELLS]
        self._squared_errors += _squared_errors(unit_features(feature)[:, cells], coordinates[:, cells])
        self._pairs += len(cells) ** 2
        self.maps.append(_deflated(coordinates))

    def length_of(self, direction: int) -> int:
        """Letters that one direction takes on the page."""
        return sum(base64_length(len(deflated[direction])) for deflated in self.maps)

    def packed(self, image: int, directions: int) -> dict[str, str]:
        """The coordinates of an image along the first directions, packed; what is in it are differences."""
        stream = b"".join(self.maps[image][:directions]) + _LAST_BLOCK
        return {"type": "i1", "data": base64_text(stream)}

    def share_kept(self, directions: int) -> float:
        """Share of the squared length that so many directions keep."""
        return float(self.shares[:directions].sum())

    def error(self, directions: int) -> float:
        """Root mean square of what cosines on the page are off by; NaN where there is none."""
        if not directions or not self._pairs:
            return math.nan
        return math.sqrt(self._squared_errors[directions - 1] / self._pairs)


def quantized(feature: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Projects features (C, h, w) of length one onto directions (D, C): int8 (D, h w) in steps of 1 / 127."""
    return np.rint(directions @ unit_features(feature) * LEVELS).astype(np.int8)


def _squared_errors(unit: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Squared errors of all cosines between cells, summed: (D,) by the number of directions."""
    steps = coordinates.astype(np.float64) / LEVELS
    products = np.clip(np.cumsum(steps[:, :, None] * steps[:, None, :], axis=0), -1, 1)
    return ((products - unit.T @ unit) ** 2).sum((1, 2))


def _deflated(coordinates: np.ndarray) -> list[bytes]:
    """Deflates rows (D, n), so that any number of first rows and an end are a stream.

    What is deflated are differences of each value to the one before it, modulo 256: neighbours are alike.
    """
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    steps = np.diff(coordinates.ravel(), prepend=np.int8(0)).reshape(coordinates.shape)
    return [stream.compress(row.tobytes()) + stream.flush(zlib.Z_FULL_FLUSH) for row in steps]


def directions_within(runs: Sequence[QuantizedRun], budget: int) -> list[int]:
    """How many directions each run keeps, so that all of them take at most so many letters.

    The run that keeps the smallest share so far gets the next direction, so that runs can be compared.
    """
    kept = [0] * len(runs)
    while True:
        open_runs = [r for r, run in enumerate(runs) if kept[r] < len(run.shares)]
        if not open_runs:
            return kept
        poorest = min(open_runs, key=lambda r: runs[r].share_kept(kept[r]))
        needed = runs[poorest].length_of(kept[poorest])
        if needed > budget:
            return kept
        kept[poorest] += 1
        budget -= needed
