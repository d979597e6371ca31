"""Installs Detectron2, or keeps the one that is there.

Detectron2 has no release of its own on PyPI. The package ``sal-detectron2`` 0.7.2 is its official
commit a59f0563 (April 2024) with its projects; only its Python files are used, so that no compiler
and no match of CUDA versions is needed. Semantic segmentation uses none of the compiled operators.

Standard library only: this runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from regseg_d2.installation.detectron2_wheel import (
    FILE_NAME,
    PACKAGE,
    VERSION,
    check_wheel,
    clean_unpacked,
    missing_files,
    pip_arguments,
    requirement,
)
from regseg_d2.installation.pip_runner import AGAIN, SetupError, one_at_a_time, run_pip

GIT_REQUIREMENT = (
    "git+https://github.com/facebookresearch/detectron2.git@a59f05630a8f205756064244bf5beb8661f96180"
)

# Unpacked here, inside site-packages, so that moving into place is a rename on one file system.
STAGING_PREFIX = ".detectron2-install-"

# What this project uses of Detectron2; run in the target interpreter.
_PROBE = """
import importlib, importlib.util, json, sys, traceback
result = {"state": "missing", "version": "", "path": "", "detail": ""}
spec = importlib.util.find_spec("detectron2")
if spec is not None:
    result["path"] = list(spec.submodule_search_locations)[0]
    try:
        if spec.origin is None:
            raise SyntaxError("a folder without an __init__.py", (result["path"], None, None, None))
        for name in ("", ".config", ".data", ".modeling", ".engine", ".evaluation", ".projects.deeplab"):
            importlib.import_module("detectron2" + name)
        result["version"] = sys.modules["detectron2"].__version__
        result["state"] = "ok"
    except BaseException as error:
        result["detail"] = f"{type(error).__name__}: {error}"
        # Whose fault: a package that it imports (by name, or where the error was raised), or its own files.
        lacks = getattr(error, "name", None) if isinstance(error, ImportError) else None
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        files = [name for name in files if not name.startswith("<")]
        raised_in = getattr(error, "filename", None) if isinstance(error, SyntaxError) else files[-1]
        own = lacks.startswith("detectron2") if lacks else str(raised_in).startswith((result["path"], "<"))
        result["state"] = "broken" if own else "needs"
print("PROBE" + json.dumps(result))
"""


@dataclass(frozen=True)
class Probe:
    """What an interpreter says about its Detectron2.

    Attributes:
        state: "ok"; "missing"; "needs" (it is there, another package is not); "broken".
        version: its version, if it is importable.
        path: its folder, if there is one.
        detail: the error of the import.
    """

    state: str
    version: str
    path: str
    detail: str


def probe(python: str) -> Probe:
    """Imports Detectron2 in ``python``, in a process of its own."""
    # Away from the current folder: a clone called detectron2 there would be taken for the package.
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, cwd=elsewhere)
    answers = [line[len("PROBE") :] for line in done.stdout.splitlines() if line.startswith("PROBE")]
    if not answers:
        detail = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Probe("broken", "", "", f"the interpreter stopped (exit code {done.returncode}): {detail}")
    return Probe(**json.loads(answers[-1]))


def site_packages(python: str) -> Path:
    """Returns the folder that ``python`` installs pure Python packages to."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{python} does not run: {error}.\nWhat to do: pass --python PATH.") from error
    return Path(done.stdout.strip())


def existing_site_packages(python: str) -> Path:
    """Returns :func:`site_packages`, made where it is missing.

    Raises:
        SetupError: it cannot be made.
    """
    site = site_packages(python)
    try:
        site.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(site, error) from error
    return site


def _cannot_write(site: Path, error: OSError) -> SetupError:
    cure = "use a virtual environment that you own: `make setup` creates one in .venv."
    return SetupError(f"cannot write to {site}: {error}.\nWhat to do: {cure}")


def remove_leftovers(site: Path) -> bool:
    """Removes what an interrupted install left in ``site``; returns whether there was any.

    Of a link, the link alone.

    Raises:
        SetupError: it cannot be removed.
    """
    leftovers = list(site.glob(f"{STAGING_PREFIX}*"))
    for path in leftovers:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise SetupError(
                f"{path}, left by an earlier install, cannot be removed: {error.strerror or error}.\n"
                f"What to do: remove it, {AGAIN}"
            ) from error
    return bool(leftovers)


def swap_in(unpacked: Path, site: Path, old: Path) -> None:
    """Moves the cleaned package into ``site``.

    Interrupted anywhere, ``import detectron2`` finds either a whole package or none, and the next
    install starts over: the package's own rename is the last step.

    Args:
        unpacked: cleaned folder on the same file system as ``site``.
        site: site-packages.
        old: empty folder on the same file system, for what is replaced.
    """
    replaced = [site / "detectron2", *site.glob(f"{FILE_NAME}-*.dist-info")]
    for path in replaced:
        if path.exists():
            os.replace(path, old / path.name)
    for path in unpacked.glob("*.dist-info"):
        os.replace(path, site / path.name)
    os.replace(unpacked / "detectron2", site / "detectron2")


def installed_by_others(site: Path) -> list[str]:
    """Returns the names of distributions in ``site`` that own another Detectron2 (built from source)."""
    entries = [*site.glob("detectron2-*.dist-info"), *site.glob("detectron2*.egg-link")]
    return sorted(path.name for path in entries)


def install_wheel(python: str, wheel: Path | None) -> None:
    """Installs the wheel from the package index, or from a file.

    Args:
        python: interpreter to install for.
        wheel: the wheel's file; None downloads it.

    Raises:
        SetupError: with what happened and what to do; what was importable before still is.
    """
    site = existing_site_packages(python)
    try:
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=site))
    except OSError as error:
        raise _cannot_write(site, error) from error
    try:
        requirements = staging / "requirements.txt"
        requirements.write_text(requirement(wheel), encoding="utf-8")
        unpacked = staging / "unpacked"
        doing = f"Installing Detectron2 ({PACKAGE} {VERSION}, pure Python)"
        run_pip(python, pip_arguments(unpacked, requirements), doing=doing)
        clean_unpacked(unpacked)
        if installed_by_others(site):
            run_pip(python, ["uninstall", "-y", "detectron2"], doing="Removing the Detectron2 that is there")
        old = staging / "old"
        old.mkdir()
        swap_in(unpacked, site, old)
    finally:
        shutil.rmtree(staging)


def install_git(python: str) -> None:
    """Builds and installs the official commit; needs git, a C++ compiler, torch and setuptools.

    Raises:
        SetupError: with what happened and what to do; what was installed before still is.
    """
    with tempfile.TemporaryDirectory() as folder:
        # --no-build-isolation: Detectron2's setup.py imports the torch that it is built for.
        build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, GIT_REQUIREMENT]
        run_pip(python, build, doing="Building Detectron2 from its source (this takes minutes)")
        wheel = next(Path(folder).glob("*.whl"))
        run_pip(
            python, ["uninstall", "-y", PACKAGE, "detectron2"], doing="Removing the Detectron2 that is there"
        )
        run_pip(python, ["install", "--no-deps", str(wheel)], doing="Installing what was built")


def cure_of_needs(detail: str) -> str:
    """Says what to do when Detectron2 is there and a package that it imports is not."""
    if "libGL" in detail or "libgthread" in detail or "libxcb" in detail:
        return (
            "OpenCV needs system libraries: `apt-get install -y libgl1 libglib2.0-0 libxcb1` (as root), or "
            "without root the build that needs none of them, over it: `pip install --no-deps "
            "--force-reinstall -c constraints.txt opencv-python-headless`."
        )
    return (
        "install this project's requirements first: `pip install -c constraints.txt -e .` (or `make setup`)."
    )


def is_repairable(found: Probe, site: Path) -> bool:
    """Whether a broken Detectron2 is an unfinished install that may be replaced without asking."""
    in_site = bool(found.path) and Path(found.path).resolve() == (site / "detectron2").resolve()
    return in_site and not installed_by_others(site)


def needs_install(python: str, reinstall: bool) -> bool:
    """Looks at the Detectron2 that is there and says what it finds.

    Returns:
        Whether one is to be installed.

    Raises:
        SetupError: one is there that is broken and not ours to replace.
    """
    site = site_packages(python)
    if remove_leftovers(site):
        print("An earlier install of Detectron2 did not finish; it is started again.")
    missing = missing_files(site)
    found = probe(python)
    if reinstall:
        return True
    if missing:
        print(f"The Detectron2 in {site} lacks {len(missing)} files (first: {missing[0]}); it is repaired.")
        return True
    if found.state == "ok":
        print(f"Detectron2 {found.version} is there and is kept: {found.path}")
        return False
    if found.state == "needs":
        what = f"Detectron2 is in {found.path}, but cannot be imported: {found.detail}."
        raise SetupError(f"{what}\nWhat to do: {cure_of_needs(found.detail)}")
    if found.state == "broken" and not is_repairable(found, site):
        raise SetupError(
            f"The Detectron2 in {found.path or site} cannot be imported: {found.detail}.\n"
            "What to do: repair it, or run this command with --reinstall to replace it by the tested one."
        )
    if found.state == "broken":
        print(f"The Detectron2 in {found.path} is not whole ({found.detail}); it is repaired.")
    return True


def verify(python: str) -> None:
    """Raises SetupError unless Detectron2 can be imported now; prints its version and path."""
    found = probe(python)
    if found.state == "ok":
        print(f"Detectron2 {found.version} is installed: {found.path}")
        return
    cure = cure_of_needs(found.detail) if found.state == "needs" else AGAIN[len("then ") :]
    raise SetupError(
        f"Detectron2 was installed, but cannot be imported ({found.state}): {found.detail}.\n"
        f"What to do: {cure}"
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        choices=("auto", "pypi", "git"),
        default="auto",
        help="auto and pypi: the tested wheel, which needs no compiler. git: the official commit, built "
        "here; it needs git, a connection to GitHub, torch, and a C++ compiler (and nvcc where torch sees a "
        "GPU), takes minutes, and is only for those who want Detectron2's compiled operators too. An "
        "importable Detectron2 is kept whatever the source",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter to install for (default: this one)"
    )
    parser.add_argument(
        "--wheel", type=Path, help="install this file instead of downloading (its hash is checked)"
    )
    parser.add_argument("--reinstall", action="store_true", help="replace a Detectron2 that is there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(arguments)
    try:
        if args.wheel is not None:
            check_wheel(args.wheel)
        with one_at_a_time(existing_site_packages(args.python)):
            if needs_install(args.python, args.reinstall):
                if args.source == "git":
                    install_git(args.python)
                else:
                    install_wheel(args.python, args.wheel)
                verify(args.python)
    except SetupError as error:
        wheel = f"{FILE_NAME}-{VERSION}-cp310-none-any.whl"
        offline = f"\nWithout a network: bring {wheel} from PyPI and pass --wheel FILE."
        offline = offline if "no connection" in str(error) else ""
        print(f"\ninstall_detectron2: {error}{offline}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninstall_detectron2: interrupted. Run the same command again: it starts over.", file=sys.stderr
        )
        return 130
    return 0
