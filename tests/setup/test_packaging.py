"""setup.py, constraints.txt, the Makefile and the CI script fit together."""

import ast
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from regseg_d2 import __version__
from tests.setup.setup_helpers import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def setup_arguments():
    captured = {}
    original = setuptools.setup
    setuptools.setup = captured.update
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
    return captured


def environment_of(python, extra=""):
    return {"python_version": python, "python_full_version": f"{python}.5", "extra": extra}


def pins(python):
    """Returns {name: version} of constraints.txt for a Python version."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment_of(python)):
                (specifier,) = requirement.specifier
                assert specifier.operator == "==", line
                assert canonicalize_name(requirement.name) not in found, f"two pins: {line}"
                found[canonicalize_name(requirement.name)] = specifier.version
    return found


def direct_requirements(setup_arguments):
    extras = [name for names in setup_arguments["extras_require"].values() for name in names]
    return [Requirement(text) for text in [*setup_arguments["install_requires"], *extras]]


def test_setup_py_needs_nothing_but_setuptools(setup_arguments):
    tree = ast.parse((ROOT / "setup.py").read_text())
    imports = [node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imports += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(imports) <= {"re", "pathlib", "setuptools", "setuptools.command.build_py", "shutil"}
    assert setup_arguments["version"] == __version__
    extras = {
        "dev",
        "examples",
        "explore",
        "export",
        "huggingface",
        "mlflow",
        "pretrained",
        "serve",
        "slurm",
        "wandb",
    }
    assert set(setup_arguments["extras_require"]) == extras
    assert "regseg_d2" in setup_arguments["packages"]
    assert not [name for name in setup_arguments["packages"] if not name.startswith("regseg_d2")]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_requirement_is_pinned_within_its_bounds(setup_arguments, python):
    pinned = pins(python)
    requirements = direct_requirements(setup_arguments)
    assert len(requirements) > 25
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} has no pin for Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} against {pinned[name]}"


def test_every_transitive_requirement_of_this_environment_is_pinned(setup_arguments):
    python = ".".join(map(str, __import__("sys").version_info[:2]))
    pinned = pins(python)
    waiting = [(r, "") for r in direct_requirements(setup_arguments)]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is required and has no pin for Python {python}"
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                # Only the packages of extras that were left out.
                continue
            waiting += [(Requirement(text), wanted) for text in needs]
    assert len(seen) > 50


def test_torch_and_torchvision_are_pinned_as_a_pair():
    for python in PYTHONS:
        torch, torchvision = pins(python)["torch"].split("."), pins(python)["torchvision"].split(".")
        assert int(torchvision[1]) == int(torch[1]) + 15


def run_make(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("setup", ""),
        ("demo", "tools/demo_comparison.py"),
        ("test", 'not slow"'),
        ("test-slow", "-m pytest"),
        ("lint", "lint-imports"),
        ("lint", "mypy regseg_d2"),
        ("format", "ruff format ."),
        ("doctor", "-m regseg_d2.doctor"),
        ("clean", "__pycache__"),
        ("distclean", "rm -rf .venv"),
    ],
)
def test_make_targets(target, expected):
    done = run_make(ROOT, "--dry-run", target)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert f"  {target} " in run_make(ROOT, "help").stdout


def test_clean_keeps_what_was_trained():
    removed = run_make(ROOT, "--dry-run", "clean").stdout
    assert not re.search(r"\boutput(\s|$)", removed)
    assert not re.search(r"\.venv(\s|$)", removed.replace("./.venv -prune", ""))


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose set-up script only notes that it ran, and fails if a file called `fail` is there."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "regseg_d2" / "installation").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    for name in ("install_detectron2.py", "detectron2_wheel.py", "pip_runner.py"):
        (tmp_path / "regseg_d2" / "installation" / name).write_text("")
    (tmp_path / "tools" / "setup_environment.py").write_text(
        "import pathlib, sys\n"
        "print('SET-UP RUNS')\n"
        "if pathlib.Path('fail').exists():\n"
        "    sys.exit(1)\n"
        "binary = pathlib.Path('.venv/bin')\n"
        "binary.mkdir(parents=True, exist_ok=True)\n"
        "(binary / 'python').exists() or (binary / 'python').symlink_to(sys.executable)\n"
        "pathlib.Path('.venv/.installed').write_text('')\n"
    )
    return tmp_path


def test_set_up_runs_once_and_again_when_what_it_depends_on_changes(checkout):
    def set_up_runs():
        return "SET-UP RUNS" in run_make(checkout, "setup").stdout

    (checkout / "fail").write_text("")
    assert run_make(checkout, "setup").returncode != 0
    (checkout / "fail").unlink()
    assert set_up_runs()
    assert not set_up_runs()
    for name in ("constraints.txt", "regseg_d2/installation/install_detectron2.py"):
        later = (checkout / ".venv" / ".installed").stat().st_mtime + 5
        os.utime(checkout / name, (later, later))
        assert set_up_runs(), name
        os.utime(checkout / name, (1, 1))
        assert not set_up_runs(), name
    # The interpreter that the environment was made from is gone.
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    assert set_up_runs()


def test_a_python_that_is_not_there_is_named(checkout):
    done = run_make(checkout, "setup", "PYTHON=python-of-the-future")
    assert done.returncode != 0
    assert "python-of-the-future is not there" in done.stderr


def test_ci_runs_what_the_readme_tells():
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    assert script.index("make lint") < script.index("make test")


def test_the_dockerfile_is_one_that_hadolint_takes_and_its_files_are_there():
    file = ROOT / "tools" / "docker" / "Dockerfile"
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    # Detectron2 is imported when it has been installed, and imports OpenCV.
    assert text.index("install --constraint constraints.txt opencv-python-headless") < text.index(
        "install-detectron2"
    )


def test_the_citation_is_of_this_version_and_names_every_method():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    readme = (ROOT / "README.md").read_text()
    titles = [reference["title"] for reference in citation["references"]]
    assert len(titles) == 6 and all(f'"{title}"' in readme for title in titles)
