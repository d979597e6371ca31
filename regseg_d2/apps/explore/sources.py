"""What is explored: views of a data set by a network, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from regseg_d2.evaluation.looking.views import ViewSource


class Source(ViewSource, Protocol):
    """Views of a data set by one network, and what is known of its training.

    Attributes:
        settings: by key; may be empty.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    def __len__(self) -> int:
        """How many images there are."""

    def training_log(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.json``; empty where there is none."""


def with_void(label: np.ndarray, num_classes: int) -> Tensor:
    """Returns class ids as int64, -1 for all that is no class."""
    label = np.asarray(label, dtype=np.int64)
    return torch.from_numpy(np.where((label >= 0) & (label < num_classes), label, -1))
