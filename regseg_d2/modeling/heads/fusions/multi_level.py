"""What the fusions share: bringing features to one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regseg_d2.modeling.layers import resize_to


def resize_and_concat(features: Sequence[Tensor]) -> Tensor:
    """All features ``(N, C_i, h_i, w_i)`` at the size of the first: ``(N, sum of C_i, h_0, w_0)``."""
    return torch.cat([resize_to(x, features[0]) for x in features], dim=1)
