"""Files that are there whole or not at all."""

import os
import subprocess
import sys

import pytest

from regseg_d2.common.files import PARTIAL_SUFFIX, atomic_writer, remove_partial_files, write_text


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "one ä\n")
    write_text(path, "two\n")
    assert path.read_text(encoding="utf-8") == "two\n"
    assert os.listdir(path.parent) == ["file.txt"]


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
