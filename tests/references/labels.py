"""Labels at the size of a feature map, cell by cell, in exact fractions.

Along a side of ``many`` pixels and ``few`` cells pixel r lies from r to r + 1, and cell i from
``i * many / few`` to ``(i + 1) * many / few``. Void is -1.
"""

import math
from fractions import Fraction

import torch


def cell(i, many, few):
    """First and last point of a cell."""
    return Fraction(many, few) * i, Fraction(many, few) * (i + 1)


def pixel_at(point):
    """The pixel that a point lies in; on the line between two, the later one."""
    return math.floor(point)


def pixels_in(i, many, few):
    """The pixels that share more than a line with a cell."""
    start, end = cell(i, many, few)
    return [r for r in range(many) if min(r + 1, end) > max(r, start)]


def labels_at_cells(labels, size, rule="center", void=255, num_classes=None, purity=Fraction(0)):
    """Labels ``(N, H, W)`` at ``size``: of the pixel at a cell's center or corner, or of most of its pixels.

    A majority's class is the smallest of several, and holds at least ``purity`` of all the cell's pixels.
    """
    result = torch.empty(len(labels), *size, dtype=torch.long)
    height, width = labels.shape[-2:]
    for n, i, j in torch.cartesian_prod(*(torch.arange(length) for length in result.shape)).tolist():
        if rule == "majority":
            rows, columns = pixels_in(i, height, size[0]), pixels_in(j, width, size[1])
            found = [labels[n, row, column].item() for row in rows for column in columns]
            votes = [label for label in found if label != void and 0 <= label < num_classes]
            best = min(set(votes), key=lambda label: (-votes.count(label), label), default=-1)
            label = best if votes and Fraction(votes.count(best), len(found)) >= purity else void
        else:
            (top, bottom), (left, right) = cell(i, height, size[0]), cell(j, width, size[1])
            point = (top, left) if rule == "corner" else ((top + bottom) / 2, (left + right) / 2)
            label = labels[n, pixel_at(point[0]), pixel_at(point[1])].item()
        result[n, i, j] = -1 if label == void else label
    return result
