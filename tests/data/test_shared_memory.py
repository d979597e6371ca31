"""Batches that do not fit into shared memory, and waits that a signal ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Instances

from regseg_d2.data import shared_memory
from regseg_d2.data.shared_memory import SharedMemoryError, collate_for_transport
from regseg_d2.engine import interruption
from regseg_d2.engine.interruption import EndlessWaitError, StopSignals
from regseg_d2.engine.timing import TimedIterator

BATCH = [{"image": torch.zeros(3, 100, 100, dtype=torch.uint8), "file_name": "x"}]


@pytest.fixture
def in_worker(monkeypatch):
    """In a worker, with a shared memory whose size and free bytes the test sets."""
    monkeypatch.setattr(shared_memory, "get_worker_info", lambda: object())
    monkeypatch.setattr(shared_memory, "PATIENCE", 0.3)
    free = []

    def statvfs(path):
        blocks = free.pop(0) if len(free) > 1 else free[0]
        return SimpleNamespace(f_bavail=blocks, f_blocks=40, f_frsize=1000)

    monkeypatch.setattr(shared_memory.os, "statvfs", statvfs)
    return free


def test_a_batch_waits_for_room_and_is_an_error_where_none_comes(in_worker):
    in_worker.extend([10, 20, 35])
    assert collate_for_transport(BATCH) is BATCH
    in_worker[:] = [10]
    (error,) = collate_for_transport(BATCH)
    assert isinstance(error, SharedMemoryError)
    assert "'/dev/shm'" in str(error)
    assert "0.0 of 0.0 MB are free" in str(error)


def test_masks_of_instances_take_room_too(in_worker):
    masks = torch.zeros(4, 100, 25, dtype=torch.bool)  # 10 kB beside the image's 30
    batch = [{**BATCH[0], "instances": Instances((100, 25), gt_classes=torch.arange(4), gt_masks=masks)}]
    in_worker.append(40)  # 32 bytes of classes are too much
    (error,) = collate_for_transport(batch)
    assert isinstance(error, SharedMemoryError)
    batch[0]["instances"].remove("gt_classes")
    assert collate_for_transport(batch) is batch


def test_a_batch_larger_than_all_of_it_does_not_wait(in_worker, monkeypatch):
    in_worker.append(40)
    monkeypatch.setattr(shared_memory, "PATIENCE", 60.0)
    start = time.monotonic()
    (error,) = collate_for_transport(BATCH * 2)
    assert isinstance(error, SharedMemoryError)
    assert time.monotonic() - start < 5


def test_without_a_worker_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: pytest.fail("asked"))
    assert collate_for_transport(BATCH) is BATCH


_SMALL = """
import torch
from torch.utils.data import DataLoader
from regseg_d2.data.loader import SampleLoader
from regseg_d2.data.shared_memory import collate_for_transport
samples = [{"image": torch.zeros(3, 1000, 1000, dtype=torch.uint8)}] * 8
loader = SampleLoader(DataLoader(samples, batch_size=1, num_workers=1, collate_fn=collate_for_transport))
try:
    print(sum(len(batch) for batch in loader))
except Exception as error:
    print(type(error).__name__, error)
"""


def _with_shared_memory(size):
    """Runs the loader above in a mount namespace with a /dev/shm of its own."""
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -c '{_SMALL}'"
    return subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_one_megabyte_of_shared_memory_is_an_error_and_no_endless_wait():
    enough = _with_shared_memory("64m")
    if enough.stdout != "8\n":
        pytest.skip(f"no mount namespace here: {enough.stderr[-200:]}")
    assert "SharedMemoryError A batch of 3.0 MB does not fit" in _with_shared_memory("1m").stdout


class _Stuck:
    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(60)


def test_a_signal_ends_a_wait_for_a_batch(monkeypatch, capfd):
    monkeypatch.setattr(interruption, "SECONDS_TO_WAIT", 0.2)
    handler = signal.getsignal(signal.SIGALRM)
    signals = StopSignals()
    with signals:
        batches = TimedIterator(_Stuck(), signals)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        start = time.monotonic()
        with pytest.raises(EndlessWaitError, match="Stopped by SIGTERM while waiting for a batch"):
            next(batches)
        assert time.monotonic() - start < 10
        # One that came before the wait counts, too.
        with pytest.raises(EndlessWaitError):
            next(batches)
    assert signal.getsignal(signal.SIGALRM) == handler


def test_a_batch_that_comes_after_the_signal_is_given(monkeypatch, capfd):
    monkeypatch.setattr(interruption, "SECONDS_TO_WAIT", 30)
    signals = StopSignals()
    with signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert next(TimedIterator([[{}]], signals)) == [{}]
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
