"""Which checkpoint a run continues from: the newest that is whole."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from regseg_d2.engine.files import write_text
from regseg_d2.errors import CheckpointError

logger = logging.getLogger(__name__)

# Name of the newest checkpoint, as Detectron2 keeps it.
TAG_FILE = "last_checkpoint"
# Names of this run's checkpoints in the order in which they were written, one a line. The names of the
# files in the folder would not do: an earlier run may have left some.
HISTORY_FILE = "checkpoint_history"


def record_checkpoint(folder: str | Path, name: str) -> None:
    """Makes a checkpoint that is on the disk the one to continue from.

    Args:
        folder: folder of the checkpoints.
        name: file name in it.
    """
    folder = Path(folder)
    earlier = [other for other in _history(folder) if other != name and (folder / other).is_file()]
    write_text(folder / HISTORY_FILE, "".join(f"{entry}\n" for entry in [*earlier, name]))
    write_text(folder / TAG_FILE, name)


def forget_checkpoints(folder: str | Path) -> None:
    """Leaves nothing to continue from; the checkpoints stay."""
    for name in (TAG_FILE, HISTORY_FILE):
        Path(folder, name).unlink(missing_ok=True)


def newest_whole_checkpoint(folder: str | Path) -> Path:
    """Returns the newest checkpoint of the run whose bytes are those that were written.

    Every checkpoint that is passed over is named in a warning.

    Args:
        folder: folder of the checkpoints, with ``last_checkpoint`` in it.

    Raises:
        CheckpointError: none is whole.
    """
    folder = Path(folder)
    tagged = (folder / TAG_FILE).read_text(encoding="utf-8", errors="replace").strip()
    # Where the tag itself is damaged it names no checkpoint at all.
    names = [tagged] if tagged.isprintable() and Path(tagged).name == tagged != "" else []
    names += [name for name in reversed(_history(folder)) if name != tagged]
    passed_over = []
    for name in names:
        damage = damage_of(folder / name)
        if damage is None:
            if passed_over:
                logger.warning(
                    "NOT CONTINUING FROM THE NEWEST CHECKPOINT. Passed over: %s. Continuing from '%s', the "
                    "one before; the steps since are made again.",
                    "; ".join(passed_over),
                    folder / name,
                )
            elif name != tagged:
                logger.warning("'%s' names no checkpoint; continuing from '%s'.", folder / TAG_FILE, name)
            return folder / name
        passed_over.append(f"'{folder / name}' {damage}")
    others = sorted(path.name for path in folder.glob("*.pth") if path.name not in names)
    raise CheckpointError(
        f"There is no whole checkpoint to continue from in '{folder}': "
        f"{'; '.join(passed_over) or f'{TAG_FILE} names none'}. "
        + (
            f"Other files there: {', '.join(others)}. To continue from one of them, write its name into "
            f"'{folder / TAG_FILE}'."
            if others
            else "Start the run anew, without --resume."
        )
    )


def damage_of(path: Path) -> str | None:
    """Returns what is wrong with a file of ``torch.save``, or None where it is whole.

    Such a file is a ZIP archive with a checksum of every tensor, which torch itself does not look at.

    Args:
        path: the file.
    """
    if not path.is_file():
        return "is missing"
    if path.stat().st_size == 0:
        return "is empty (0 bytes)"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive may fail anywhere in its reader, with any error
        return f"is damaged or cut off ({error})"
    return None if damaged is None else f"is damaged (wrong checksum of its part '{damaged}')"


def _history(folder: Path) -> list[str]:
    path = folder / HISTORY_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line and Path(line).name == line]
