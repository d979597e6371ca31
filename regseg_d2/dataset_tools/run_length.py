"""COCO's run-length code of masks, decoded with checks.

``pycocotools`` decodes a code that is too short without an error, and leaves whatever was in the memory in
the rest of the mask.

The format is that of ``maskApi.c`` of https://github.com/cocodataset/cocoapi: lengths of runs of 0 and 1 in
turn, column by column. Compressed, each length is the difference to the one two before it (from the fourth
on), in groups of 5 bits, lowest first, as characters from "0" on: bit 5 says that another one follows, bit 4
of the last one is the sign.
"""

from __future__ import annotations

import numpy as np

_LONGEST = 7  # characters of a length; 35 bits are more than any image has pixels


def decode_runs(counts: object, size: tuple[int, int]) -> np.ndarray:
    """Decodes a mask ``(H, W)`` of bool; code, size and errors as for :func:`run_lengths`."""
    lengths = run_lengths(counts, size)
    height, width = size
    values = np.arange(len(lengths)) % 2 == 1
    return values.repeat(lengths).reshape(width, height).T


def run_lengths(counts: object, size: tuple[int, int]) -> np.ndarray:
    """Decodes and checks the lengths of the runs of 0 and 1 in turn, column by column, of a mask.

    Args:
        counts: the code, compressed (text) or not (lengths).
        size: height and width of the mask.

    Raises:
        ValueError: it is no such code, or the lengths do not add up to the size.
    """
    lengths = np.array(counts) if isinstance(counts, list) else _lengths(counts)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("its lengths are not all whole numbers from 0 on")
    height, width = size
    # Python's numbers do not overflow.
    if sum(lengths.tolist()) != height * width:
        raise ValueError(f"its lengths do not add up to {height} x {width} pixels")
    return lengths


def _lengths(counts: object) -> np.ndarray:
    """Lengths of runs of a compressed code, int64."""
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"its counts are {type(counts).__name__}; expected text or a list")
    text = counts.encode() if isinstance(counts, str) else counts
    parts = np.frombuffer(text, np.uint8).astype(np.int64) - ord("0")
    if not len(parts) or parts.min() < 0 or parts.max() > 63 or parts[-1] & 32:
        raise ValueError("its code is cut off, or has characters that no code has")
    ends = np.flatnonzero(parts & 32 == 0)
    starts = np.r_[0, ends[:-1] + 1]
    sizes = ends - starts + 1
    if sizes.max() > _LONGEST:
        raise ValueError("it has a length of more than 35 bits")
    place = np.arange(len(parts)) - starts.repeat(sizes)
    values = np.add.reduceat((parts & 31) << (5 * place), starts)
    lengths = values - np.where(parts[ends] & 16, 1 << (5 * sizes), 0)
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths
