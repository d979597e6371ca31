"""Stages of a head whose constructors take values of ``MODEL.SEM_SEG_HEAD``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from regseg_d2.common.errors import ConfigError

# Arguments that mean the same in most stages, and their keys.
_SHARED_KEYS = {
    **dict.fromkeys(("channels", "out_channels"), "CONTEXT_CHANNELS"),
    **{"norm": "NORM", "num_classes": "NUM_CLASSES", "ignore_value": "IGNORE_VALUE"},
}


class Stage(nn.Module):
    """A context module or a projection.

    Its constructor takes ``in_channels`` and values of ``MODEL.SEM_SEG_HEAD``: ``CONTEXT_CHANNELS`` as
    ``channels`` or ``out_channels``; ``NORM``, ``NUM_CLASSES`` and ``IGNORE_VALUE`` by these names; and those
    that ``head_keys`` names.

    A value that is out of its range is a ConfigError of the constructor.

    Attributes:
        head_keys: the keys of its other arguments.
    """

    head_keys: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: Any) -> dict[str, Any]:
        """Reads the keys of the constructor's arguments."""
        head, arguments = cfg.MODEL.SEM_SEG_HEAD, inspect.signature(cls).parameters
        shared = {argument: key for argument, key in _SHARED_KEYS.items() if argument in arguments}
        values = {argument: head[key] for argument, key in {**shared, **cls.head_keys}.items()}
        return {"in_channels": in_channels, **values}


class Fusion(Stage):
    """A fusion; ``in_channels`` are those of each feature."""

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
        """As of a :class:`Stage`; raises ConfigError if there is one feature only."""
        if len(shapes) < 2:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.FUSION is {cls.__name__!r} and MODEL.SEM_SEG_HEAD.IN_FEATURES has "
                f"{len(shapes)} feature; expected 2 or more, such as ['res2', 'res3', 'res4', 'res5']"
            )
        return super().from_config(cfg, [shape.channels for shape in shapes])
