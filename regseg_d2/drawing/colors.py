"""Colours of classes."""

from __future__ import annotations

from collections.abc import Sequence


def voc_color(index: int) -> tuple[int, int, int]:
    """The colour map of PASCAL VOC: three bits of the index for each bit of a channel; 0 is black."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= ((index >> channel) & 1) << (7 - bit)
        index >>= 3
    return color[0], color[1], color[2]


def filled_colors(colors: Sequence[tuple[int, int, int] | None]) -> tuple[tuple[int, int, int], ...]:
    """Gives classes without a colour the one of the VOC colour map, or the next one that is free."""
    taken = {color for color in colors if color is not None}
    filled = []
    for number, color in enumerate(colors, start=1):
        while color is None:
            candidate = voc_color(number)
            if candidate not in taken:
                color = candidate
                taken.add(candidate)
            number += 1
        filled.append(color)
    return tuple(filled)
