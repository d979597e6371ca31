"""What survives a training step: modules that hold nothing but buffers."""

from __future__ import annotations

from torch import nn

from regseg_d2.state.distribution_memory import DistributionMemory
from regseg_d2.state.ema_centers import EmaCenters
from regseg_d2.state.random_stream import RandomStream
from regseg_d2.state.undoable import UndoableState


def memories_of(module: nn.Module) -> list[nn.Module]:
    """The modules of this folder in a network."""
    kinds = (DistributionMemory, EmaCenters, RandomStream, UndoableState)
    return [part for part in module.modules() if isinstance(part, kinds)]
