"""Runs that train, followed from checkpoint to checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine.trained_model import FINAL_WEIGHTS, weights_of_run

#: Seconds between two looks at the folders.
PERIOD = 10.0


def follow(
    folders: Sequence[Path],
    write: Callable[[], None],
    *,
    period: float = PERIOD,
    say: Callable[[str], None] = print,
) -> None:
    """Calls ``write()`` whenever every run has weights and one has new ones; ends when all are final.

    Args:
        folders: of the runs.
        write: looks at the runs. A checkpoint that their rotation removes meanwhile is looked for again.
        period: seconds between two looks at the folders.
        say: takes lines for people.

    Raises:
        ConfigError: there is no folder to follow.
        UserError: what ``write`` raises, while the weights stay as they are.
    """
    if not folders:
        raise ConfigError("--watch follows runs: give their OUTPUT_DIR.")
    seen: list[tuple[Path, int]] = []
    say(f"Following {', '.join(map(str, folders))}; Ctrl-C ends it.")
    while True:
        found = _weights(folders)
        if found and found != seen:
            try:
                write()
            except UserError:
                if _weights(folders) == found:
                    raise
                continue
            seen = found
        if seen and all(file.name == FINAL_WEIGHTS for file, _ in seen):
            return
        time.sleep(period)


def _weights(folders: Sequence[Path]) -> list[tuple[Path, int]]:
    """The last weights of each run and when they were written; empty while one has none."""
    try:
        files = [weights_of_run(folder) for folder in folders]
        return [(file, file.stat().st_mtime_ns) for file in files]
    except (ConfigError, FileNotFoundError):
        return []
