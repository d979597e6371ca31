"""What a command line tool prints where it cannot go on."""

import pytest

from regseg_d2.engine.files import write_text
from regseg_d2.errors import ConfigError, errors_end_the_program


def test_a_users_error_is_printed_and_ends_the_program(capsys):
    with pytest.raises(SystemExit) as end, errors_end_the_program():
        raise ConfigError("KEY is 3; expected 4")
    assert end.value.code == 2
    assert capsys.readouterr().err == "Error: KEY is 3; expected 4\n"


def test_a_file_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end, errors_end_the_program(status=1):
        write_text(tmp_path / "file" / "out.json", "{}")
    assert end.value.code == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ValueError, match="no user's"), errors_end_the_program():
        raise ValueError("no user's")
    with pytest.raises(OSError, match="no name"), errors_end_the_program():
        raise OSError("no name")
