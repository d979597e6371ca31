"""What is done with a file of each kind: all that the package does with it before it is believed."""

from __future__ import annotations

import shutil
from pathlib import Path

from regseg_d2.data.preparation.archives import unpack


def unpack_beside(path: Path) -> None:
    """Unpacks an archive into the folder ``unpacked`` beside it.

    Args:
        path: the archive.
    """
    folder = path.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    unpack(path, folder)
