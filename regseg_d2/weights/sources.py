"""Where published checkpoints come from, how they are told apart, and what their networks read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from regseg_d2.weights.network import Network
from regseg_d2.weights.renaming import Rule, rename_all

#: Renamed tensors, and by the file's names those that have no place in the network.
Renamed = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class ImageValues:
    """What the pixels that a network reads are.

    Attributes:
        format: order of the channels, RGB or BGR.
        mean: subtracted from each channel's values of 0 to 255, in that order.
        std: what they are divided by.
    """

    format: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        """As keys and values of a config."""
        mean, std = (", ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return f"INPUT.FORMAT {self.format}, MODEL.PIXEL_MEAN [{mean}], MODEL.PIXEL_STD [{std}]"

    def agrees_with(self, cfg: CfgNode) -> bool:
        """Whether a config hands the network such pixels, but for a rounding of at most one step."""
        ours = (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD)
        near = all(abs(a - b) <= 1 for a, b in zip((*self.mean, *self.std), ours, strict=True))
        return self.format == cfg.INPUT.FORMAT and near


#: ImageNet's mean and deviation, which nearly all networks were trained with.
IMAGENET = ImageValues("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Source:
    """One origin of checkpoints.

    Attributes:
        title: its name, for people.
        recognises: whether the names of a checkpoint's tensors are of this origin.
        rename: puts a checkpoint's tensors under the names of a network.
        image_values: what the checkpoint's network reads.
        head: pattern of how the names of the decode head's tensors begin in the file; None for checkpoints
            without one.
        describe_head: says whose head the names are of; "" where they do not tell.
    """

    title: str
    recognises: Callable[[Iterable[str], Network], bool]
    rename: Callable[[Mapping[str, Tensor], Network], Renamed]
    image_values: Callable[[Mapping[str, Tensor], CfgNode], ImageValues]
    head: str | None = None
    describe_head: Callable[[Iterable[str]], str] = lambda names: ""


def by_rules(state: Mapping[str, Tensor], rules: Sequence[Rule], network: Network) -> Renamed:
    """Renames tensors to those that a network has."""
    renamed, unknown = rename_all(state, rules, network.shapes)
    return renamed, {name: state[name] for name in unknown}


def joined(*parts: Renamed) -> Renamed:
    """Puts what became of parts of a checkpoint together."""
    renamed: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    for part, rest in parts:
        renamed |= part
        unknown |= rest
    return renamed, unknown


def has_all(names: Iterable[str], *patterns: str) -> bool:
    """Whether each of the patterns matches the beginning of one of the names."""
    names = list(names)
    return all(any(re.match(pattern, name) for name in names) for pattern in patterns)
