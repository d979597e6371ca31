"""Standard output and error that nobody reads any more."""

from __future__ import annotations

import os
import select

STDOUT, STDERR = 1, 2


def lost_outputs() -> list[int]:
    """Which of standard output and error is a terminal that was closed, or a pipe without a reader."""
    lost = []
    for descriptor in (STDOUT, STDERR):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            lost.append(descriptor)
    return lost


def point_to_nowhere(descriptor: int) -> None:
    """Lets all that is written to a descriptor from now on vanish."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def let_go_of_lost_outputs() -> None:
    """Points what is lost to nowhere.

    Else the last words of a run fail, and its exit status says that instead of what became of it.
    """
    for descriptor in lost_outputs():
        point_to_nowhere(descriptor)
