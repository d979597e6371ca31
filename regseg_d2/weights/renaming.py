"""Renaming the tensors of a checkpoint by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Size, Tensor

#: A pattern that matches a whole name, what it becomes (``\\1`` is the first group), and, where the values
#: are laid out in another way too, a function that lays the tensor out as ours.
Rule = tuple[str, str] | tuple[str, str, Callable[[Tensor], Tensor]]


def rename(name: str, rules: Sequence[Rule]) -> str | None:
    """The name that the first matching rule gives, or None if no rule matches."""
    return next((re.sub(rule[0], rule[1], name) for rule in rules if re.fullmatch(rule[0], name)), None)


def rename_all(
    state: Mapping[str, Tensor], rules: Sequence[Rule], wanted: Mapping[str, Size] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames all tensors.

    Args:
        state: tensors by name.
        rules: tried in order; the first that matches counts.
        wanted: shapes by name of the tensors that are looked for. Several rules may then name places for one
            tensor: the first that fits in shape counts, or else the first that is among them. A tensor
            for which there is none, or whose place another one has taken, is unknown.

    Returns:
        Tensors by new name, and the names that no rule matches.

    Raises:
        ValueError: if two tensors get the same name, without ``wanted``.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        places = list(_places(name, value, rules))
        if wanted is not None:
            places = [place for place in places if place[0] in wanted and place[0] not in renamed]
            places.sort(key=lambda place: wanted[place[0]] != place[1].shape)
        if not places:
            unknown.append(name)
            continue
        new, value = places[0]
        if new in renamed:
            raise ValueError(f"{name!r} becomes {new!r}, which another tensor has become before")
        renamed[new] = value
    return renamed, unknown


def prefixed(rules: Sequence[Rule], theirs: str, ours: str) -> list[Rule]:
    """The same rules for names that begin with a prefix: a pattern without groups, and what it becomes."""
    return [(theirs + rule[0], ours + rule[1], *rule[2:]) for rule in rules]


def conv_and_norm(theirs: str, conv: str, norm: str) -> list[Rule]:
    """Rules for a convolution and the norm behind it, of a row of layers that are numbered.

    ``theirs`` is a pattern of the convolution's name, with its number at the end; what follows may be a row
    of its own that holds the norm with its ReLU.
    """
    row, number = theirs.rsplit(".", 1)
    return [
        (rf"{row}.{number}\.(weight|bias)", rf"{conv}.\1"),
        (rf"{row}.{int(number) + 1}\.(?:0\.)?(\w+)", rf"{norm}.\1"),
    ]


def _places(name: str, value: Tensor, rules: Sequence[Rule]) -> Iterator[tuple[str, Tensor]]:
    """New name and tensor of each rule that matches."""
    for rule in rules:
        if match := re.fullmatch(rule[0], name):
            yield match.expand(rule[1]), rule[2](value) if len(rule) == 3 else value
