"""The configs that come with the package, by a name that is the same in a checkout and in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "regseg:"
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_configs() -> Path:
    """Returns the folder of the configs: in the package if it was installed from a wheel, else beside it."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def config_path(name: str | Path, folder: str | Path = "") -> Path:
    """Returns the path of a config file.

    Args:
        name: a path, or ``regseg:NAME`` for ``NAME`` below the shipped configs, such as
            ``regseg:camvid/deeplabv3_efficientnet_lite0.yaml``.
        folder: what a path is relative to; ``""`` is the working folder.
    """
    text = str(name)
    if text.startswith(PREFIX):
        return shipped_configs() / text.removeprefix(PREFIX)
    return Path(folder) / os.path.expanduser(text)


def shipped_name(path: Path) -> str:
    """Returns the name of the shipped config that a path to nothing may mean; ``""`` where there is none.

    ``configs/camvid/fcn.yaml`` and ``camvid/fcn.yaml`` are ``regseg:camvid/fcn.yaml``.
    """
    for start in range(len(path.parts)):
        name = Path(*path.parts[start:])
        if not name.is_absolute() and len(name.parts) > 1 and (shipped_configs() / name).is_file():
            return f"{PREFIX}{name.as_posix()}"
    return ""
