"""What the fusions share: bringing features to one size, and checking how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.layers import resize_to


def resize_and_concat(features: Sequence[Tensor]) -> Tensor:
    """All features ``(N, C_i, h_i, w_i)`` at the size of the first: ``(N, sum of C_i, h_0, w_0)``."""
    return torch.cat([resize_to(x, features[0]) for x in features], dim=1)


def check_levels(fusion: str, shapes: Sequence[ShapeSpec]) -> None:
    """Raises ConfigError if a fusion of several levels is given a single one."""
    if len(shapes) < 2:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.FUSION is {fusion!r} and MODEL.SEM_SEG_HEAD.IN_FEATURES has {len(shapes)} "
            "feature; expected 2 or more, such as ['res2', 'res3', 'res4', 'res5']"
        )
