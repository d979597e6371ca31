"""Freed memory stays with a worker: samples then cost no page faults."""

import ctypes
import platform
import resource

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from regseg_d2.data import loader, memory

PIECES = [700_000, 1_000_000, 2_100_000, 3_300_000, 6_300_000]
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


def _take_a_new_process_settings(worker):
    """glibc's own start values: the process that forks may have outgrown them."""
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(memory._M_MMAP_THRESHOLD, 128 << 10) and mallopt(memory._M_TRIM_THRESHOLD, 128 << 10)


def _start_like_a_new_process(worker):
    _take_a_new_process_settings(worker)
    loader._start_worker(worker)


def _page_faults(start_worker):
    return [int(n) for n in DataLoader(_PageFaults(), num_workers=1, worker_init_fn=start_worker)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_workers_keep_what_they_free():
    pages = ROUNDS * sum(PIECES) // resource.getpagesize()
    assert max(_page_faults(_start_like_a_new_process)) < pages / 100
    # Without the worker's start the same work does fault, or this test would show nothing.
    assert min(_page_faults(_take_a_new_process_settings)) > pages / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed_memory() is False
