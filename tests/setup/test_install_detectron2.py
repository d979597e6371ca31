"""The installer of Detectron2, on a stand-in for the wheel: no network, no real site-packages."""

import base64
import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regseg_d2.installation import detectron2_wheel as wheel_tool
from regseg_d2.installation import install_detectron2 as tool
from regseg_d2.installation.pip_runner import SetupError
from tests.setup.setup_helpers import INFO, ROOT, SUBMODULES, write_package, write_unpacked_wheel


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site-packages of which Detectron2 is imported and into which it is installed."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(tool, "site_packages", lambda python: folder)
    return folder


@pytest.fixture
def install(tmp_path, site):
    """Runs the command for an interpreter that sees the empty site-packages, and nothing else."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return lambda *arguments: tool.main(["--python", str(python), *arguments])


@pytest.fixture
def pip_calls(monkeypatch):
    """Replaces pip: an install with --target unpacks the stand-in; every call is recorded."""
    calls = []

    def run_pip(python, arguments, *, doing):
        calls.append(list(arguments))
        if "--target" in arguments:
            target = Path(arguments[arguments.index("--target") + 1])
            target.mkdir()
            write_unpacked_wheel(target)

    monkeypatch.setattr(tool, "run_pip", run_pip)
    return calls


def installed_names(site):
    return sorted(path.name for path in site.iterdir())


def test_pip_gets_the_hash_and_flags_that_fit_the_wheel(tmp_path):
    arguments = wheel_tool.pip_arguments(tmp_path / "target", tmp_path / "r.txt")
    assert arguments == [
        "install",
        "--target",
        str(tmp_path / "target"),
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--python-version=3.10",
        "--implementation=cp",
        "--abi=none",
        "--platform=any",
        "--require-hashes",
        "-r",
        str(tmp_path / "r.txt"),
    ]
    digest = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
    assert wheel_tool.requirement(None) == f"sal-detectron2==0.7.2 --hash=sha256:{digest}\n"
    wheel = tmp_path / "x.whl"
    assert wheel_tool.requirement(wheel) == f"sal-detectron2 @ {wheel.as_uri()} --hash=sha256:{digest}\n"


def test_git_source_is_the_official_commit_and_imports_the_installed_torch(monkeypatch, tmp_path):
    calls = []

    def run_pip(python, arguments, *, doing):
        calls.append(arguments)
        if arguments[0] == "wheel":
            folder = arguments[arguments.index("--wheel-dir") + 1]
            with open(os.path.join(folder, "detectron2-0.6-cp311.whl"), "w"):
                pass

    monkeypatch.setattr(tool, "run_pip", run_pip)
    tool.install_git(sys.executable)
    assert calls[0][:3] == ["wheel", "--no-deps", "--no-build-isolation"]
    official = "https://github.com/facebookresearch/detectron2.git@a59f0563"
    assert calls[0][-1].startswith(f"git+{official}")
    # What was there is removed only after the build has succeeded.
    assert calls[1] == ["uninstall", "-y", "sal-detectron2", "detectron2"]
    assert calls[2][0] == "install" and calls[2][-1].endswith("detectron2-0.6-cp311.whl")


def test_cleaning_removes_strays_and_keeps_the_list_of_files_true(tmp_path):
    write_unpacked_wheel(tmp_path)
    wheel_tool.clean_unpacked(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detectron2", INFO]
    assert not list(tmp_path.rglob("*.so"))
    metadata = (tmp_path / INFO / "METADATA").read_text().splitlines()
    assert [x for x in metadata if x.startswith("Requires")] == [
        "Requires-Dist: Pillow>=7.1",
        "Requires-Dist: numpy",
    ]
    assert "Tag: py3-none-any" in (tmp_path / INFO / "WHEEL").read_text()
    assert "cp310" not in (tmp_path / INFO / "WHEEL").read_text()
    with (tmp_path / INFO / "RECORD").open() as stream:
        rows = {name: (digest, size) for name, digest, size in csv.reader(stream)}
    on_disk = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert set(rows) == on_disk
    init = (tmp_path / "detectron2" / "__init__.py").read_bytes()
    assert int(rows["detectron2/__init__.py"][1]) == len(init)
    expected = base64.urlsafe_b64encode(hashlib.sha256(init).digest()).decode().rstrip("=")
    assert rows["detectron2/__init__.py"][0] == f"sha256={expected}"


def test_something_else_than_the_wheel_is_refused(tmp_path):
    (tmp_path / "detectron2").mkdir()
    with pytest.raises(SetupError, match="did not unpack into a detectron2 package"):
        wheel_tool.clean_unpacked(tmp_path)


def test_install_into_an_empty_environment(install, site, pip_calls, capsys):
    assert install() == 0
    assert installed_names(site) == ["detectron2", INFO]
    assert f"Detectron2 0.7.2 is installed: {site / 'detectron2'}" in capsys.readouterr().out
    assert len(pip_calls) == 1


def test_an_importable_one_is_kept_and_named(install, site, pip_calls, capsys):
    write_package(site, version="0.6")
    assert install() == 0
    assert f"Detectron2 0.6 is there and is kept: {site / 'detectron2'}" in capsys.readouterr().out
    assert pip_calls == []


def test_reinstall_replaces_an_importable_one(install, site, pip_calls):
    write_package(site, version="0.6")
    assert install("--reinstall") == 0
    assert '"0.7.2"' in (site / "detectron2" / "__init__.py").read_text()


@pytest.mark.parametrize("step", range(1, 6))
def test_interrupted_at_any_rename_the_next_call_recovers(install, site, pip_calls, monkeypatch, step):
    # A broken one is there, so that moving it away is one of the steps that can be interrupted.
    write_package(site, version="0.5")
    (site / "detectron2" / "config" / "__init__.py").write_text("import detectron2.absent\n")
    (site / INFO).mkdir()
    (site / INFO / "RECORD").write_text("")
    renames = []
    real_replace = os.replace

    def replace(source, target):
        renames.append(target)
        if len(renames) == step:
            raise KeyboardInterrupt
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        first = install()
    # Four renames: two away, two in. The fifth is never reached, and the install is whole at once.
    assert first == (130 if step <= 4 else 0)
    assert install() == 0
    assert installed_names(site) == ["detectron2", INFO]
    assert '"0.7.2"' in (site / "detectron2" / "__init__.py").read_text()
    assert "Requires-Dist: numpy\n" in (site / INFO / "METADATA").read_text()


def test_killed_while_unpacking_leaves_a_folder_that_the_next_call_removes(install, site, pip_calls, capsys):
    leftover = site / f"{tool.STAGING_PREFIX}abc"
    write_package(leftover)
    assert install() == 0
    assert "did not finish" in capsys.readouterr().out
    assert installed_names(site) == ["detectron2", INFO]


def test_a_leftover_that_is_a_link_or_a_file_is_removed_and_what_it_points_to_is_not(
    install, site, pip_calls, tmp_path, capsys
):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    (site / f"{tool.STAGING_PREFIX}link").symlink_to(thesis)
    (site / f"{tool.STAGING_PREFIX}file_link").symlink_to(thesis / "thesis.tex")
    (site / f"{tool.STAGING_PREFIX}nowhere").symlink_to(tmp_path / "nowhere")
    (site / f"{tool.STAGING_PREFIX}file").write_text("")
    assert install() == 0
    assert "did not finish" in capsys.readouterr().out
    assert installed_names(site) == ["detectron2", INFO]
    assert (thesis / "thesis.tex").read_text() == "years of work"


def test_a_leftover_that_cannot_be_removed_is_named(install, site, pip_calls, monkeypatch, capsys):
    leftover = site / f"{tool.STAGING_PREFIX}abc"
    leftover.mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tool.shutil, "rmtree", refuse)
    assert install() == 1
    assert f"{leftover}, left by an earlier install, cannot be removed" in capsys.readouterr().err
    assert pip_calls == []


def test_of_two_installs_the_second_waits_and_finds_what_the_first_has_made(install, site, pip_calls, capfd):
    staging = site / f"{tool.STAGING_PREFIX}first"  # of the first, which is at work: no leftover
    code = (
        "import sys, time; from pathlib import Path\n"
        "from regseg_d2.installation.pip_runner import one_at_a_time\n"
        f"site = Path({str(site)!r})\n"
        "with one_at_a_time(site):\n"
        f"    Path({str(staging)!r}).mkdir()\n"
        "    print('held', flush=True); time.sleep(1.5)\n"
        f"    Path({str(staging)!r}).rmdir()\n"
        "    from tests.setup.setup_helpers import write_package; write_package(site)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as first:
        assert first.stdout.readline() == "held\n"
        assert install() == 0
    assert first.returncode == 0  # its folder was not taken from under it
    output = capfd.readouterr().out
    assert "Another process installs into" in output and "is there and is kept" in output
    assert pip_calls == []


def test_files_missing_from_an_earlier_install_are_noticed(install, site, pip_calls, capsys):
    assert install() == 0
    # An import does not notice this one.
    (site / "detectron2" / "extra.py").write_text("")
    with (site / INFO / "RECORD").open("a") as stream:
        stream.write("detectron2/extra.py,,0\n")
    assert wheel_tool.missing_files(site) == []
    (site / "detectron2" / "extra.py").unlink()
    assert wheel_tool.missing_files(site) == ["detectron2/extra.py"]
    capsys.readouterr()
    assert install() == 0
    assert "lacks 1 files (first: detectron2/extra.py)" in capsys.readouterr().out
    assert len(pip_calls) == 2


def test_stray_files_do_not_count_as_missing(site):
    write_unpacked_wheel(site)
    for path in (site / "detectron2").glob("_C*"):
        path.unlink()
    assert wheel_tool.missing_files(site) == []


@pytest.mark.parametrize("broken", ["folder without __init__", "half a file", "submodule gone"])
def test_an_unfinished_package_is_repaired(install, site, pip_calls, capsys, broken):
    write_package(site)
    if broken == "folder without __init__":
        (site / "detectron2" / "__init__.py").unlink()
    elif broken == "half a file":
        (site / "detectron2" / "engine" / "__init__.py").write_text("def half(")
    else:
        (site / "detectron2" / "data" / "__init__.py").unlink()
        (site / "detectron2" / "engine" / "__init__.py").write_text("from detectron2.data import catalog\n")
    assert install() == 0
    assert "is not whole" in capsys.readouterr().out
    assert len(pip_calls) == 1


def test_a_missing_requirement_is_not_taken_for_a_broken_detectron2(install, site, pip_calls, capsys):
    write_package(site)
    (site / "detectron2" / "config" / "__init__.py").write_text("import no_such_library\n")
    assert install() == 1
    message = capsys.readouterr().err
    assert "No module named 'no_such_library'" in message and "make setup" in message
    assert pip_calls == []


def test_an_error_inside_another_library_is_not_taken_for_a_broken_detectron2(
    install, site, pip_calls, capsys
):
    write_package(site)
    (site / "other_library.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (site / "detectron2" / "config" / "__init__.py").write_text("import other_library\n")
    assert install() == 1
    assert "torchvision::nms" in capsys.readouterr().err
    assert pip_calls == []


def test_system_libraries_of_opencv_get_their_cure(install, site, pip_calls, capsys):
    write_package(site)
    text = "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')\n"
    (site / "fake_cv2.py").write_text(text)
    (site / "detectron2" / "data" / "__init__.py").write_text("import fake_cv2\n")
    assert install() == 1
    assert "apt-get install -y libgl1" in capsys.readouterr().err


def test_a_broken_one_of_the_users_own_is_left_alone(install, site, pip_calls, capsys):
    write_package(site)
    (site / "detectron2-0.6.dist-info").mkdir()
    (site / "detectron2" / "config" / "__init__.py").write_text("import detectron2.absent\n")
    assert install() == 1
    assert "--reinstall" in capsys.readouterr().err
    assert pip_calls == []
    assert install("--reinstall") == 0
    assert ["uninstall", "-y", "detectron2"] in pip_calls


def test_offline_says_what_to_do_and_leaves_nothing(install, site, monkeypatch, capsys):
    def run_pip(python, arguments, *, doing):
        raise SetupError("Installing: failed.\nThere is no connection to the package index, or it was cut.")

    monkeypatch.setattr(tool, "run_pip", run_pip)
    assert install() == 1
    message = capsys.readouterr().err
    assert "no connection to the package index" in message and "--wheel FILE" in message
    assert installed_names(site) == []


def test_a_wheel_file_must_be_the_tested_one(install, tmp_path, site, pip_calls, capsys):
    assert install("--wheel", str(tmp_path / "absent.whl")) == 1
    assert "there is no such file" in capsys.readouterr().err
    other = tmp_path / "other.whl"
    other.write_bytes(b"other")
    assert install("--wheel", str(other)) == 1
    message = capsys.readouterr().err
    assert hashlib.sha256(b"other").hexdigest() in message and wheel_tool.WHEEL_SHA256 in message
    assert pip_calls == []


def test_an_interpreter_that_does_not_run_is_named():
    with pytest.raises(SetupError, match="/no/such/python does not run"):
        tool.site_packages("/no/such/python")


def test_the_stand_in_has_what_the_probe_imports():
    for name in SUBMODULES:
        dotted = f"detectron2.{name.replace('/', '.')}"
        assert name == "projects" or dotted[len("detectron2") :] in tool._PROBE
