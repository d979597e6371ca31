"""Which checkpoint a run continues from: the newest that is whole."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path

from regseg_d2.common.errors import CheckpointError
from regseg_d2.common.files import refuse_folder, write_text

logger = logging.getLogger(__name__)

# Name of the newest checkpoint, as Detectron2 keeps it.
TAG_FILE = "last_checkpoint"
# Names of this run's checkpoints in the order in which they were written, one a line. The names of the
# files in the folder would not do: an earlier run may have left some.
HISTORY_FILE = "checkpoint_history"
_CHECKPOINT_NAME = re.compile(r"model_(\d{7,}|final)\.pth")


def announce_checkpoint(folder: str | Path, name: str, *, begins_history: bool = False) -> None:
    """Says that a checkpoint is about to be there, so that it counts from the moment that it is.

    Args:
        folder: folder of the checkpoints.
        name: file name in it.
        begins_history: it is the first one of its run; what the folder has of an earlier run is none to
            fall back to.
    """
    folder = Path(folder)
    history = [] if begins_history else _history(folder)
    earlier = [other for other in history if other != name and (folder / other).is_file()]
    write_text(folder / HISTORY_FILE, "".join(f"{entry}\n" for entry in [*earlier, name]))
    if begins_history:
        refuse_folder(folder / TAG_FILE)
        (folder / TAG_FILE).unlink(missing_ok=True)


def tag_checkpoint(folder: str | Path, name: str) -> None:
    """Makes a checkpoint that was announced, and is on the disk, the one to continue from."""
    write_text(Path(folder) / TAG_FILE, name)


def holds_checkpoints(folder: str | Path) -> bool:
    """Whether a run has left checkpoints in a folder, or says that it has."""
    folder = Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(name == TAG_FILE or _CHECKPOINT_NAME.fullmatch(name) for name in names)


def newest_whole_checkpoint(folder: str | Path) -> Path:
    """Returns the newest checkpoint of the run whose bytes are those that were written.

    Where ``last_checkpoint`` is missing, the history says which they are.

    Every checkpoint that is passed over is named in a warning.

    Raises:
        CheckpointError: none is whole.
    """
    folder = Path(folder)
    # Where the tag itself is damaged or gone it names no checkpoint at all.
    tagged = (_lines(folder / TAG_FILE) or [""])[0].strip()
    names = [tagged] if tagged.isprintable() and Path(tagged).name == tagged != "" else []
    names += [name for name in reversed(_history(folder)) if name != tagged]
    passed_over: list[str] = []
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
    return [line for line in _lines(folder / HISTORY_FILE) if line and Path(line).name == line]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
