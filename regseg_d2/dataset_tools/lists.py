"""Lists of files as ``splits: {train: {list: train.txt}}`` of a declaration reads them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path


def list_text(pairs: Sequence[tuple[Path, ...]], root: Path | None) -> str:
    """Returns a line for each image and its label, relative to a folder, or absolute without one."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    for pair in pairs:
        paths = [os.path.relpath(path, root) if root else os.path.abspath(path) for path in pair]
        writer.writerow([Path(path).as_posix() for path in paths])
    return text.getvalue()
