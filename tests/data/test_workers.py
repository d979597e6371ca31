"""Freed memory stays with a worker: samples then cost no page faults."""

import platform
import resource

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from regseg_d2.data import loader
from regseg_d2.data import workers as memory

# glibc keeps twice the largest piece of its own accord, hence several.
PIECES = [3_000_000] * 10
ROUNDS = 20


class _PageFaults(Dataset):
    """Allocates, as a mapper does, and tells how many page faults that took."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        _allocate()  # the first time, pages do come from the system
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(ROUNDS):
            _allocate()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _allocate():
    pieces = [np.empty(size, dtype=np.uint8) for size in PIECES]
    for piece in pieces:
        piece[::1024] = 1


def _page_faults(**start):
    # A new process: a fork of this one would find room enough among what the tests before it left.
    samples = DataLoader(_PageFaults(), num_workers=1, multiprocessing_context="spawn", **start)
    return [int(faults) for faults in samples]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_workers_keep_what_they_free():
    pages = ROUNDS * sum(PIECES) // resource.getpagesize()
    assert max(_page_faults(worker_init_fn=loader._start_worker)) < pages / 100
    # Without the worker's start the same work does fault, or this test would show nothing.
    assert min(_page_faults()) > pages / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed_memory() is False
