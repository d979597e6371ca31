"""Says at the start of training how much memory the regularizers' banks take."""

from __future__ import annotations

import logging

from torch import nn

from regseg_d2.engine.devices import unwrap_model
from regseg_d2.regularizers import Regularizer

logger = logging.getLogger(__name__)

# Above this a bank is likely to be a surprise on a GPU of 8 to 24 GB.
LARGE_BYTES = 2**30


def log_memory_budget(model: nn.Module) -> None:
    """Logs one line for each regularizer that keeps a bank; a warning where it is large."""
    regularizers = getattr(unwrap_model(model), "regularizers", {})
    for name, regularizer in regularizers.items():
        size = regularizer.memory_bytes if isinstance(regularizer, Regularizer) else 0
        if not size:
            continue
        logger.info(
            "%s keeps a memory bank of %.1f MB on each process, and in each checkpoint.", name, size / 1e6
        )
        if size > LARGE_BYTES:
            logger.warning(
                "The memory bank of %s takes %.1f GB on each process (classes x size x channels x bytes of a "
                "number). To make it smaller: a smaller MODEL.REGULARIZERS.%s.%s, or %s float16, which "
                "halves it.",
                name,
                size / 1e9,
                name,
                *regularizer.bank_keys,
            )
