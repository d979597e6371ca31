"""What a command line tool prints where it cannot go on."""

import argparse
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from regseg_d2.commands import check as command
from regseg_d2.common.errors import ConfigError, errors_end_the_program, printable, printable_lines
from regseg_d2.common.files import write_text
from regseg_d2.engine.launch import run
from regseg_d2.engine.main import _make_printable
from tests.data.data_helpers import registered, toy_spec, write_pair
from tests.data.declarations import declare, declared

# Sets the title of the window, moves the cursor up, turns the writing around, starts a line of its own.
HOSTILE = "a\x1b]0;mine\x07\x1b[3A\x9b2J\u202egnp\u2066\r\nError: all is well"


def test_a_users_error_is_printed_and_ends_the_program(capsys):
    with pytest.raises(SystemExit) as end, errors_end_the_program():
        raise ConfigError("KEY is 3; expected 4")
    assert end.value.code == 2
    assert capsys.readouterr().err == "Error: KEY is 3; expected 4\n"


OUTPUTS = """
import sys
from regseg_d2.common.errors import errors_end_the_program
with errors_end_the_program():
    for number in range({lines}):
        print("line", number)
    print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_output_whose_reader_ends_first_ends_the_program_in_silence(lines, unbuffered):
    """As ``head`` does, and ``less`` that is left."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *unbuffered, "-c", OUTPUTS.format(lines=lines)]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert process.returncode == 141
    assert process.stderr in ("", "done\n")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_finds_no_room_is_an_error(lines):
    command = [sys.executable, "-c", OUTPUTS.format(lines=lines)]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.removeprefix("done\n") == "Error: Standard output: No space left on device\n"


def test_a_broken_pipe_of_the_program_itself_keeps_its_traceback(capsys):
    with pytest.raises(BrokenPipeError), errors_end_the_program():
        raise BrokenPipeError


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


def steers_a_terminal(text):
    return not all(letter.isprintable() for line in text.split("\n") for letter in line)


def test_printable_keeps_letters_and_writes_out_what_steers():
    assert printable("Straße 日本 [bold]", None) == "Straße 日本 [bold]"
    expected = "a\\x1b]0;mine\\x07\\x1b[3A\\x9b2J\\u202egnp\\u2066\\r\\nError: all is well"
    assert printable(HOSTILE, None) == expected
    assert printable("\udc80") == "\\udc80"  # a byte of a file name that is no text
    assert printable_lines("one\ntwo\x1b\n") == "one\ntwo\\x1b\n"


def test_an_error_with_a_hostile_name_is_one_message(capsys):
    with pytest.raises(SystemExit), errors_end_the_program():
        raise ConfigError(f"'{HOSTILE}' is not there")
    error = capsys.readouterr().err
    assert not steers_a_terminal(error) and error.startswith("Error: 'a\\x1b]0;mine")
    assert error.splitlines()[1] == "  Error: all is well' is not there"


@pytest.mark.parametrize("name", [HOSTILE.replace("/", ""), f"{HOSTILE}.yaml"])
def test_train_net_with_a_hostile_file_name(capfd, name):
    with pytest.raises(SystemExit) as end:
        run(None, argparse.Namespace(config_file=name, opts=[], print_config=False))
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert "mine" in error and not steers_a_terminal(error) and "\nError" not in error


@pytest.fixture
def check(monkeypatch):
    """Runs the command; returns its exit status."""

    def run_it(*arguments):
        monkeypatch.setattr(sys, "argv", ["regseg check", *map(str, arguments)])
        with declared(), pytest.raises(SystemExit) as end:
            command.main()
        return end.value.code

    return run_it


@pytest.mark.parametrize("has_label", [True, False])
def test_check_dataset_with_hostile_names(tmp_path, capfd, check, has_label):
    for name in (HOSTILE, "twin"):
        write_pair(tmp_path, name, np.tile([0, 77 if has_label else 1], (30, 20)))
    if not has_label:
        (tmp_path / "labels" / f"{HOSTILE}.png").unlink()
    classes = (f"{HOSTILE} soil", f"{HOSTILE} [red]crop", "weed")
    page = tmp_path / "page\x1b.html"
    with registered(toy_spec(tmp_path, f"farm{HOSTILE}", classes=classes)):
        assert check(f"farm{HOSTILE}", "--output", page) == 1
    output, error = capfd.readouterr()
    assert not steers_a_terminal(output) and not steers_a_terminal(error)
    assert "images/a\\x1b]0;mine" in output and "farma\\x1b]0;mine" in output and "[red]" in output
    assert not any(line.strip().startswith("Error") for line in output.splitlines())
    assert "page\\x1b.html" in output and page.is_file()


def test_check_dataset_with_a_hostile_declaration(tmp_path, capfd, check):
    assert check("--declared", declare(tmp_path, name=HOSTILE)) == 2
    assert check("--declared", declare(tmp_path, classes=[HOSTILE, "crop"])) == 2
    assert check("--declared", tmp_path / HOSTILE) == 2
    assert check(HOSTILE) == 2
    error = capfd.readouterr().err
    assert error.count("mine") >= 4 and not steers_a_terminal(error)


def test_a_line_of_the_log_with_a_hostile_name():
    record = logging.makeLogRecord({"msg": "'%s' is gone:\n%d", "args": (HOSTILE, 3)})
    assert _make_printable(record)
    assert not steers_a_terminal(record.getMessage()) and record.getMessage().endswith("is gone:\n3")
