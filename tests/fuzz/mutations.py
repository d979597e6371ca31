"""Changes to small valid files, from a seed."""

from __future__ import annotations

import random

# Values at which the fields of headers turn over, and parts of the formats.
_NUMBERS = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
    b"\xff" * 8,
)


def mutated(data: bytes, draw: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
    """Returns a file with one to four changes: bytes, stretches, the end, words of its format.

    Args:
        data: the file.
        draw: random numbers.
        words: what the format is made of, such as opcodes or keywords.
    """
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 40))
        kind = draw.randrange(8)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = draw.randrange(256)
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = bytes(changed[place : place + length]) * draw.choice((1, 2, 50))
        elif kind == 5:
            number = draw.choice(_NUMBERS)
            changed[place : place + len(number)] = number
        elif kind == 6:
            other = draw.randrange(len(changed) + 1)
            stretch = changed[place : place + length]
            changed[other : other + len(stretch)] = stretch
        elif words:
            word = draw.choice(words)
            changed[place : place + draw.choice((0, len(word)))] = word
        else:
            changed[place:place] = draw.randbytes(length)
    return bytes(changed)
