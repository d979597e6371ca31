"""The tested wheel of Detectron2: its name and hash, how pip unpacks it, and what of it is kept.

Standard library only.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import shutil
from pathlib import Path

from regseg_d2.installation.pip_runner import SetupError

PACKAGE = "sal-detectron2"
VERSION = "0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# The wheel is tagged for Python 3.10 because of the compiled library that is removed from it below.
WHEEL_FLAGS = (
    "--only-binary=:all:",
    "--python-version=3.10",
    "--implementation=cp",
    "--abi=none",
    "--platform=any",
)
# Name of the package as it stands in names of files.
FILE_NAME = PACKAGE.replace("-", "_")

_STRAY_FOLDERS = ("tools",)
_COMPILED = re.compile(r"^detectron2/_C[^/]*\.(so|pyd)$")


def requirement(wheel: Path | None) -> str:
    """Returns the line of a requirements file that names the wheel and its hash."""
    source = f"{PACKAGE}=={VERSION}" if wheel is None else f"{PACKAGE} @ {wheel.resolve().as_uri()}"
    return f"{source} --hash=sha256:{WHEEL_SHA256}\n"


def pip_arguments(target: Path, requirements: Path) -> list[str]:
    """Returns pip's arguments that unpack the wheel of ``requirements`` into ``target``."""
    options = ["--target", str(target), "--no-deps", "--no-compile", *WHEEL_FLAGS]
    return ["install", *options, "--require-hashes", "-r", str(requirements)]


def clean_unpacked(folder: Path) -> None:
    """Removes from the unpacked wheel what must not come into site-packages.

    That is the compiled library (for one Python version, used by no semantic segmentation), a
    top-level package called ``tools``, and in its metadata the tag of that Python version and two
    requirements that do not hold for us, ``numpy<2`` and ``black``. The list of installed files
    follows, so that pip can uninstall it.

    Args:
        folder: what the wheel was unpacked into; changed in place.

    Raises:
        SetupError: the folder does not hold the package.
    """
    info = folder / f"{FILE_NAME}-{VERSION}.dist-info"
    if not (folder / "detectron2" / "__init__.py").is_file() or not (info / "RECORD").is_file():
        raise SetupError(f"the wheel did not unpack into a detectron2 package and {info.name}.")
    for name in _STRAY_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / "detectron2").glob("_C*"):
        if _COMPILED.match(path.relative_to(folder).as_posix()):
            path.unlink()
    metadata = info / "METADATA"
    lines = metadata.read_text(encoding="utf-8").splitlines()
    lines = ["Requires-Dist: numpy" if line == "Requires-Dist: numpy<2" else line for line in lines]
    metadata.write_text("\n".join(x for x in lines if x != "Requires-Dist: black") + "\n", encoding="utf-8")
    (info / "top_level.txt").write_text("detectron2\n", encoding="utf-8")
    # Without the compiled library it is for any Python; `pip check` looks at this.
    wheel = (info / "WHEEL").read_text(encoding="utf-8").splitlines()
    kept = [line for line in wheel if not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    tags = ["Root-Is-Purelib: true", "Tag: py3-none-any"]
    (info / "WHEEL").write_text("\n".join([*(x for x in kept if x), *tags]) + "\n", encoding="utf-8")
    _rewrite_record(folder, info)


def _rewrite_record(folder: Path, info: Path) -> None:
    """Makes RECORD list the files that are there, with the hashes that they have."""
    rows = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(("detectron2/", f"{info.name}/")):
            continue
        content = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        is_record = path == info / "RECORD"
        rows.append([name, "", ""] if is_record else [name, f"sha256={digest}", str(len(content))])
    with (info / "RECORD").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def missing_files(site: Path) -> list[str]:
    """Lists what an earlier install of the wheel should have in ``site`` and has not.

    Files that our own cleaning removes do not count. No earlier install: nothing is missing.
    """
    missing = []
    for record in site.glob(f"{FILE_NAME}-*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8") as stream:
            names = [row[0] for row in csv.reader(stream) if row]
        for name in names:
            expected = (
                name.startswith("detectron2/") and not _COMPILED.match(name) and not name.endswith(".pyc")
            )
            if expected and not (site / name).is_file():
                missing.append(name)
    return missing


def check_wheel(wheel: Path) -> None:
    """Raises SetupError unless ``wheel`` is the tested file."""
    if not wheel.is_file():
        raise SetupError(f"--wheel {wheel}: there is no such file.")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SetupError(
            f"--wheel {wheel}: sha256 is {digest}, expected {WHEEL_SHA256}.\nWhat to do: get "
            f"{FILE_NAME}-{VERSION}-cp310-none-any.whl from PyPI again."
        )
