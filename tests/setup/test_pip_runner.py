"""Running pip: what is shown of it, and what is made of its failures."""

import os
import sys

import pytest

from regseg_d2.installation import pip_runner as runner


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "hash differs"),
        ("error: externally-managed-environment", "virtual environment"),
        ("Temporary failure in name resolution", "no connection"),
        ("ReadTimeoutError(...)", "no connection"),
        ("ProxyError('Cannot connect to proxy.')", "no connection"),
        ("fatal: unable to access 'https://github.com/x': Could not resolve host", "no connection"),
        ("SSLError(SSLCertVerificationError(...))", "PIP_CERT"),
        ("error: command 'gcc' failed: No such file or directory", "compiler"),
        ("PermissionError: [Errno 13] Permission denied", "may not write"),
        ("something new", "its last lines are above"),
    ],
)
def test_failures_are_named_with_what_to_do(output, expected):
    message = runner.diagnose(output)
    assert expected in message
    assert "What to do:" in message


@pytest.mark.parametrize(("answers", "expected"), [(True, "no version that fits"), (False, "no connection")])
def test_nothing_found_is_told_apart_from_no_connection(monkeypatch, answers, expected):
    monkeypatch.setattr(runner, "index_answers", lambda: answers)
    assert expected in runner.diagnose("ERROR: No matching distribution found for torch==2.11.0")


def test_a_dead_index_is_seen_as_dead(monkeypatch):
    # Port 9 of this machine: nobody listens there.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert not runner.index_answers()


def test_pip_without_a_connection(monkeypatch, tmp_path, capsys):
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
        "PIP_FIND_LINKS": "",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        runner.SetupError, match="(?s)Fetching: failed.*no connection.*run the same command again"
    ):
        runner.run_pip(sys.executable, ["download", "-d", str(tmp_path), "no-such-package"], doing="Fetching")
    assert "Fetching ..." in capsys.readouterr().out


def test_an_interpreter_that_is_not_there():
    with pytest.raises(runner.SetupError, match="cannot run /no/such/python"):
        runner.run_pip("/no/such/python", ["list"], doing="Listing")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Downloading torch-2.11.0.whl (500 MB)\n", "Downloading torch-2.11.0.whl (500 MB)"),
        ("Requirement already satisfied: numpy\n", ""),
        ("  Building wheel for fvcore (pyproject.toml): started\n", ""),
        ("ERROR: no\n", "ERROR: no"),
    ],
)
def test_progress_in_short(line, shown):
    assert runner.shorten(line) == shown


def test_long_lines_are_cut():
    assert len(runner.shorten("Installing collected packages: " + "x, " * 100)) == 110
