"""Stages of a head whose constructors take values of ``MODEL.SEM_SEG_HEAD``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from regseg_d2.common.errors import ConfigError


class Stage(nn.Module):
    """A context module or a projection.

    Attributes:
        head_keys: for each argument of the constructor besides ``in_channels`` its key in
            ``MODEL.SEM_SEG_HEAD``.
    """

    head_keys: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: Any) -> dict[str, Any]:
        """Reads ``head_keys``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {"in_channels": in_channels, **{name: head[key] for name, key in cls.head_keys.items()}}


class Fusion(Stage):
    """A fusion; ``in_channels`` are those of each feature."""

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Reads ``head_keys``.

        Raises:
            ConfigError: if there is one feature only.
        """
        if len(shapes) < 2:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.FUSION is {cls.__name__!r} and MODEL.SEM_SEG_HEAD.IN_FEATURES has "
                f"{len(shapes)} feature; expected 2 or more, such as ['res2', 'res3', 'res4', 'res5']"
            )
        return super().from_config(cfg, [shape.channels for shape in shapes])
