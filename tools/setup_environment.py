#!/usr/bin/env python
"""Creates the virtual environment and installs everything into it; ``make setup`` runs this.

Each step looks at what is there, so that a run after an interrupted one continues. A stamp file is
written last: where it is, and newer than what it was made from, there is nothing to do.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from regseg_d2.installation.pip_runner import AGAIN, SetupError, one_at_a_time, run_pip  # noqa: E402

SUPPORTED = ((3, 10), (3, 13))
TOOLCHAIN = ("pip", "setuptools", "wheel")
EXTRAS = "dev,pretrained"
STAMP = ".installed"


def check_python(version: tuple[int, int], executable: str) -> None:
    """Raises SetupError unless ``version`` (major, minor) is supported."""
    if SUPPORTED[0] <= version <= SUPPORTED[1]:
        return
    first, last = (".".join(map(str, bound)) for bound in SUPPORTED)
    others = [name for name in ("python3.13", "python3.12", "python3.11", "python3.10") if shutil.which(name)]
    hint = f"make PYTHON={others[0]} setup" if others else "make PYTHON=/path/to/python3.13 setup"
    raise SetupError(
        f"Python {version[0]}.{version[1]} ({executable}) is not supported; Python {first} to {last} is.\n"
        f"What to do: {hint}"
    )


def venv_python(venv: Path) -> Path:
    """Returns the path of the interpreter of ``venv``, whether it is there or not."""
    return venv / "bin" / "python"


def venv_version(venv: Path) -> tuple[int, int] | None:
    """Returns the Python version of a virtual environment; None if it is absent or was left unfinished."""
    code = "import pip, sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([str(venv_python(venv)), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    if done.returncode:
        return None
    words = done.stdout.split()
    return (int(words[0]), int(words[1])) if [w.isdecimal() for w in words] == [True, True] else None


def ensure_venv(venv: Path) -> None:
    """Creates ``venv`` unless it is there and whole; one whose creation was interrupted is made anew.

    Raises:
        SetupError: it cannot be created, or it belongs to an unsupported Python.
    """
    version = venv_version(venv)
    if version is not None:
        check_python(version, str(venv_python(venv)))
        return
    check_python(sys.version_info[:2], sys.executable)
    # A link to nothing does not exist, and is in the way all the same.
    is_in_the_way = not venv.is_dir() and (venv.exists() or venv.is_symlink())
    if is_in_the_way or venv.is_dir() and any(venv.iterdir()) and not _looks_like_venv(venv):
        raise SetupError(
            f"{venv} is there and is no virtual environment.\nWhat to do: move it away, " + AGAIN
        )
    print(f"Creating the virtual environment {venv} with {sys.executable} ...", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        cure = f"on Debian and Ubuntu `apt-get install {package}` (as root), " + AGAIN
        raise SetupError(f"{sys.executable} cannot create a virtual environment.\nWhat to do: {cure}")


def _looks_like_venv(folder: Path) -> bool:
    """Whether ``folder`` was made by the venv module, perhaps only in part."""
    # venv makes include/, lib/ and bin/ first and writes pyvenv.cfg then.
    return (folder / "pyvenv.cfg").is_file() or {p.name for p in folder.iterdir()} <= {
        "bin",
        "include",
        "lib",
        "lib64",
    }


def install(venv: Path, extras: str) -> None:
    """Installs pip, this package with its requirements, and Detectron2, each at its tested version.

    Raises:
        SetupError: with what happened and what to do.
    """
    python = str(venv_python(venv))
    pinned = ["install", "-c", str(ROOT / "constraints.txt")]
    run_pip(python, [*pinned, *TOOLCHAIN], doing="Installing pip and setuptools")
    # Three requirements come as source without compiled parts; --no-build-isolation builds them with
    # the pinned setuptools instead of the newest.
    what = ["--no-build-isolation", "-e", f"{ROOT}[{extras}]"]
    run_pip(
        python, [*pinned, *what], doing="Installing the requirements (about 3 GB to download the first time)"
    )
    if subprocess.run([python, str(ROOT / "tools" / "install_detectron2.py")]).returncode:
        raise SetupError("Detectron2 is not installed; the reason is above.")


def check_imports(venv: Path) -> None:
    """Runs the import checks of the doctor; raises SetupError if what training needs cannot be imported."""
    command = [str(venv_python(venv)), "-m", "regseg_d2.doctor", "--imports-only"]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SetupError(
            "Everything is installed, but not everything can be imported; what and why is above.\n"
            "What to do: what stands under 'cure'; if nothing does, `make distclean` and then the same again."
        )


def write_stamp(venv: Path) -> None:
    """Writes the stamp file, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=venv, prefix=STAMP)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(
            "Installed by tools/setup_environment.py; delete this file to have it looked at again.\n"
        )
    os.replace(name, venv / STAMP)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv", help="the virtual environment (default: .venv)"
    )
    parser.add_argument("--extras", default=EXTRAS, help=f"extras of setup.py to install (default: {EXTRAS})")
    args = parser.parse_args(arguments)
    venv = args.venv.absolute()
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(venv.parent):
            ensure_venv(venv)
            install(venv, args.extras)
            check_imports(venv)
            write_stamp(venv)
    except SetupError as error:
        print(f"\nset-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted. Run the same command again: it continues.", file=sys.stderr)
        return 130
    print("The environment is ready.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
