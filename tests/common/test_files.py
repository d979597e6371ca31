"""Files that are there whole or not at all."""

import os
import subprocess
import sys

import pytest

from regseg_d2.common.errors import DiskFullError, WriteError
from regseg_d2.common.files import (
    PARTIAL_SUFFIX,
    atomic_folder,
    atomic_writer,
    remove_partial_files,
    write_text,
)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "one ä\n")
    write_text(path, "two\n")
    assert path.read_text(encoding="utf-8") == "two\n"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / ("雪" * 83 + "12.png")
    assert len(os.fsencode(path.name)) == 255
    with atomic_writer(path) as file:
        file.write("here")
    with atomic_folder(tmp_path / ("f" * 255)) as folder:
        (folder / "a").touch()
    assert path.read_text() == "here"
    assert sorted(os.listdir(tmp_path)) == ["f" * 255, path.name]


def test_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"), atomic_writer(path, "wb") as file:
        file.write(b"half of the n")
        raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_killed_before_the_rename_leaves_the_old_file_and_a_leftover_that_is_cleaned(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    program = (
        "import os; from regseg_d2.common import files\n"
        "os.replace = lambda *paths: os._exit(9)\n"  # as kill -9 between writing and renaming
        f"files.write_text({str(path)!r}, 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=os.getcwd()).returncode == 9
    assert path.read_text() == "old"
    leftovers = [name for name in os.listdir(tmp_path) if name.endswith(PARTIAL_SUFFIX)]
    assert len(leftovers) == 1
    assert [p.name for p in remove_partial_files(tmp_path)] == leftovers
    assert os.listdir(tmp_path) == ["file.txt"]


def test_readable_by_others_as_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o644


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_whole_and_is_readable_as_other_files_are(tmp_path):
    folder = tmp_path / "above" / "new"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.txt").touch()
    with atomic_folder(folder) as draft:
        assert not folder.exists() and draft.parent == folder.parent
        (draft / "sub").mkdir(mode=0o700)
        (draft / "sub" / "b.txt").write_text("b")
        (draft / "a.txt").write_text("a")
        (draft / "a.txt").chmod(0o600)
    assert contents(folder) == {"a.txt": "a", "sub/b.txt": "b"}
    assert os.listdir(folder.parent) == ["new"]
    for made, like in ((folder, "plain"), (folder / "sub", "plain"), (folder / "a.txt", "plain.txt")):
        assert made.stat().st_mode == (tmp_path / like).stat().st_mode


def test_a_folder_that_is_there_is_replaced_only_when_it_is_said_and_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as draft:
        (draft / "old.txt").write_text("old")
    with (
        pytest.raises(WriteError, match="folder' cannot be written: Directory not empty"),
        atomic_folder(folder),
    ):
        pass
    for replace in (False, True):
        with pytest.raises(RuntimeError, match="half"), atomic_folder(folder, replace=replace) as draft:
            (draft / "new.txt").write_text("half of it")
            raise RuntimeError("half")
    assert contents(folder) == {"old.txt": "old"}
    assert os.listdir(tmp_path) == ["folder"]
    with atomic_folder(folder, replace=True) as draft:
        (draft / "new.txt").write_text("new")
    assert contents(folder) == {"new.txt": "new"}
    assert os.listdir(tmp_path) == ["folder"]


def test_a_replacement_that_cannot_be_moved_into_place_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as draft:
        (draft / "old.txt").write_text("old")
    rename = os.rename

    def fails_for_the_new_one(source, target):
        if str(source).endswith(PARTIAL_SUFFIX):
            raise OSError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(WriteError, match="Permission denied"), atomic_folder(folder, replace=True) as draft:
        (draft / "new.txt").write_text("new")
    assert contents(folder) == {"old.txt": "old"}
    assert os.listdir(tmp_path) == ["folder"]


def test_a_full_disk_leaves_no_part_of_a_folder(tmp_path):
    full = pytest.raises(DiskFullError, match="is full.*folder' could not be written")
    with full, atomic_folder(tmp_path / "folder") as draft:
        (draft / "a.txt").write_text("a")
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_half_written_folders_of_killed_processes_are_removed(tmp_path):
    program = (
        "import os; from regseg_d2.common import files\n"
        f"with files.atomic_folder({str(tmp_path / 'folder')!r}) as draft:\n"
        "    (draft / 'a.txt').write_text('a'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=os.getcwd()).returncode == 9
    (leftover,) = tmp_path.iterdir()
    assert remove_partial_files(tmp_path) == [leftover]
    assert os.listdir(tmp_path) == []
