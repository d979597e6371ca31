"""Creating the virtual environment: versions, half-made ones, the stamp."""

import subprocess
import sys

import pytest

from regseg_d2.installation.pip_runner import SetupError
from tools import setup_environment as tool


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_versions(version):
    tool.check_python(version, "python")


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14), (4, 0)])
def test_other_versions_are_refused_with_what_to_type(version):
    message = f"(?s)Python {version[0]}.{version[1]} .usr.bin.py.*3.10 to 3.13.*make PYTHON=.* setup"
    with pytest.raises(SetupError, match=message.replace(" .usr", " \\(/usr")):
        tool.check_python(version, "/usr/bin/py")


def test_the_supported_versions_agree_everywhere():
    from regseg_d2.apps.doctor.rules import PYTHON_RANGE

    assert tool.SUPPORTED == PYTHON_RANGE
    assert ">=3.10,<3.14" in (tool.ROOT / "setup.py").read_text()


@pytest.fixture
def created(monkeypatch):
    """Replaces the creation of environments; the commands are recorded."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tool, "venv_version", lambda venv: None)
    monkeypatch.setattr(tool.subprocess, "run", run)
    return commands


@pytest.mark.parametrize("left", [None, [], ["include", "lib"], ["bin", "include", "lib", "pyvenv.cfg"]])
def test_an_absent_or_half_made_environment_is_made_anew(tmp_path, created, left):
    venv = tmp_path / ".venv"
    for name in left or ():
        path = venv / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("") if "." in name else path.mkdir()
    tool.ensure_venv(venv)
    assert created == [[sys.executable, "-m", "venv", "--clear", str(venv)]]


@pytest.mark.parametrize("broken", ["link to nothing", "no interpreter", "folder", "garbage", "no pip"])
def test_an_environment_whose_interpreter_is_gone_or_broken_is_made_anew(tmp_path, monkeypatch, broken):
    venv = tmp_path / ".venv"
    python = venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /opt/python3.11/bin\n")
    (venv / tool.STAMP).write_text("")
    if broken == "link to nothing":  # the Python that it was made of was removed
        python.symlink_to("/opt/python3.11/bin/python")
    elif broken == "folder":
        python.mkdir()
    elif broken != "no interpreter":
        python.write_text("\x7fELF" if broken == "garbage" else f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
    commands, run = [], subprocess.run

    def record_or_run(command, **options):
        if "venv" not in command:
            return run(command, **options)
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tool.subprocess, "run", record_or_run)
    tool.ensure_venv(venv)
    assert commands == [[sys.executable, "-m", "venv", "--clear", str(venv)]]


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_file_or_a_link_to_nothing_in_the_place_of_the_environment_is_named(tmp_path, capsys, what):
    venv = tmp_path / ".venv"
    venv.write_text("") if what == "file" else venv.symlink_to(tmp_path / "nowhere")
    assert tool.main(["--venv", str(venv)]) == 1
    assert f"{venv} is there and is no virtual environment.\nWhat to do: move it" in capsys.readouterr().err


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path, created):
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "thesis.tex").write_text("years of work")
    with pytest.raises(SetupError, match="is no virtual environment"):
        tool.ensure_venv(venv)
    assert created == []
    assert (venv / "thesis.tex").read_text() == "years of work"


def test_a_whole_environment_is_kept(tmp_path, created, monkeypatch):
    monkeypatch.setattr(tool, "venv_version", lambda venv: (3, 11))
    tool.ensure_venv(tmp_path)
    assert created == []


def test_an_environment_of_an_unsupported_python_is_named(tmp_path, created, monkeypatch):
    monkeypatch.setattr(tool, "venv_version", lambda venv: (3, 14))
    with pytest.raises(SetupError, match=r"Python 3\.14 .*bin/python"):
        tool.ensure_venv(tmp_path)


def test_version_of_an_environment_that_is_not_there_or_does_not_run(tmp_path):
    assert tool.venv_version(tmp_path) is None
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert tool.venv_version(tmp_path) is None
    python.write_text("#!/bin/sh\necho 3 11\n")
    assert tool.venv_version(tmp_path) == (3, 11)


def test_no_stamp_unless_everything_worked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "ensure_venv", lambda venv: venv.mkdir(exist_ok=True))
    monkeypatch.setattr(tool, "check_imports", lambda venv: None)

    def failing_install(venv, extras):
        raise SetupError("no connection")

    venv = tmp_path / ".venv"
    monkeypatch.setattr(tool, "install", failing_install)
    assert tool.main(["--venv", str(venv)]) == 1
    assert "set-up: no connection" in capsys.readouterr().err
    assert list(venv.iterdir()) == []

    def interrupted_install(venv, extras):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "install", interrupted_install)
    assert tool.main(["--venv", str(venv)]) == 130
    assert "Run the same command again" in capsys.readouterr().err
    assert list(venv.iterdir()) == []

    monkeypatch.setattr(tool, "install", lambda venv, extras: None)
    assert tool.main(["--venv", str(venv)]) == 0
    assert [path.name for path in venv.iterdir()] == [".installed"]


def test_install_takes_the_pins_and_the_pinned_builder(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        tool, "run_pip", lambda python, arguments, *, doing: calls.append((python, arguments))
    )
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(tool.subprocess, "run", lambda command, **kwargs: done)
    tool.install(tmp_path, "dev")
    python = str(tmp_path / "bin" / "python")
    pinned = ["install", "-c", str(tool.ROOT / "constraints.txt")]
    assert calls[0] == (python, [*pinned, "pip", "setuptools", "wheel"])
    assert calls[1] == (python, [*pinned, "--no-build-isolation", "-e", f"{tool.ROOT}[dev]"])
    done.returncode = 1
    with pytest.raises(SetupError, match="Detectron2 is not installed"):
        tool.install(tmp_path, "dev")
