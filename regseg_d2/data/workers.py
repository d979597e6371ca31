"""How a worker process treats memory that it frees."""

from __future__ import annotations

import ctypes
import platform

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
