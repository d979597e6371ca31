"""How a worker process of a loader treats signals, and memory that it frees."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Free memory at the heap's end that a process keeps, in bytes.
KEPT_BYTES = 128 << 20
# Pieces from this size on come from the system and go back to it; the largest value that glibc takes.
_OWN_PIECE_BYTES = 32 << 20


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next sample instead of handing it back to the system.

    A sample needs megabytes for milliseconds. Of its own accord glibc keeps about twice the largest piece
    and returns the rest each time; the system clears every page before it lends it anew, which can take as
    long as all the arithmetic of a sample.

    Returns:
        Whether the C library is glibc and took the setting; others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Either setting alone would freeze the other at its small default.
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_PIECE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def obey_the_parent_alone() -> None:
    """Makes a loader worker outlive the signals that its trainer finishes its step after.

    SLURM and terminals send signals to all processes of a job. A worker that dies of one leaves its
    trainer without the batches of the last step. SIGTERM of the parent itself still ends the worker:
    that is how torch stops one that hangs. To be called in the main thread of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS: there is no SLURM, and no way to learn who has sent a signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
