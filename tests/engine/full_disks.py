"""Fills disks."""

import errno
from contextlib import contextmanager


@contextmanager
def filled(folder):
    """Leaves no byte free."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    yield
    path.unlink()
