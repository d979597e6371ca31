"""The way of a batch from a loader worker to the trainer: through shared memory, which may be short."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import get_worker_info

from regseg_d2.common.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
#: Seconds that a worker waits for the trainer to take batches before it gives up.
PATIENCE = 60.0


class SharedMemoryError(UserError):
    """A batch does not fit into shared memory."""


def collate_for_transport(batch: list[Any]) -> list[Any]:
    """Leaves a batch of samples or errors the list that it is, once there is room to send it.

    Without room torch's sender fails in a thread of the worker, whose error nobody hears, and the trainer
    waits without end.

    Where there is none in time, the error that says so takes its place.
    """
    if get_worker_info() is None or not SHARED_MEMORY.is_dir():
        return batch
    size = sum(
        tensor.numel() * tensor.element_size()
        for sample in batch
        if isinstance(sample, dict)
        for tensor in _tensors(sample.values())
    )
    end = time.monotonic() + PATIENCE
    while True:
        memory = os.statvfs(SHARED_MEMORY)
        if memory.f_bavail * memory.f_frsize >= size:
            return batch
        total = memory.f_blocks * memory.f_frsize
        if total < size or time.monotonic() > end:
            return [_no_room(size, total, memory.f_bavail * memory.f_frsize)]
        time.sleep(0.05)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the entries of a sample, those of its instances included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Instances):
            yield from _tensors(value.get_fields().values())


def _no_room(size: int, total: int, free: int) -> SharedMemoryError:
    return SharedMemoryError(
        f"A batch of {size / 1e6:.1f} MB does not fit into the shared memory '{SHARED_MEMORY}', through "
        f"which loader workers hand it to the trainer: {free / 1e6:.1f} of {total / 1e6:.1f} MB are free. "
        "Give it more (docker run --shm-size 8g, or --ipc host), or set DATALOADER.NUM_WORKERS 0, which "
        "needs none."
    )
