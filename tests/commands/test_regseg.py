"""``regseg COMMAND``: every command, and the scripts in tools/ that are the same."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from regseg_d2 import __version__
from regseg_d2.commands import regseg
from regseg_d2.commands.regseg import COMMANDS

ROOT = Path(__file__).parents[2]
# Scripts of a checkout alone: they install, measure this package's own speed, or write its tables.
ONLY_SCRIPTS = {
    "benchmark",
    "demo_comparison",
    "gpu_check",
    "make_docs",
    "make_model_zoo",
    "setup_environment",
}


def call(monkeypatch, capsys, *words):
    """The exit status of a command in this process, and what it printed and wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/regseg", *words])
    status = 0
    try:
        regseg.main()
    except SystemExit as end:
        status = end.code or 0
    return (status, *capsys.readouterr())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_help_under_its_own_name(name, monkeypatch, capsys):
    status, printed, _ = call(monkeypatch, capsys, name, "--help")
    assert status == 0
    assert printed.startswith(f"usage: regseg {name}")


def test_the_overview_lists_all_and_is_an_error_without_help(monkeypatch, capsys):
    status, printed, errors = call(monkeypatch, capsys, "--help")
    assert status == 0 and not errors
    assert [line.split()[0] for line in printed.splitlines()[2:-2]] == list(COMMANDS)
    assert call(monkeypatch, capsys) == (2, "", printed)
    assert call(monkeypatch, capsys, "--version") == (0, f"regseg_d2 {__version__}\n", "")


def test_a_wrong_name_names_the_near_one(monkeypatch, capsys):
    status, printed, errors = call(monkeypatch, capsys, "comparee", "run")
    assert status == 2 and not printed
    assert "regseg: there is no command 'comparee'. Did you mean compare?" in errors


def test_eval_is_train_that_only_evaluates(monkeypatch, capsys):
    seen = []
    module = importlib.import_module("regseg_d2.commands.train")
    monkeypatch.setattr(module, "run", lambda function, args: seen.append((function, args)))
    call(monkeypatch, capsys, "eval", "--config-file", "x.yaml", "MODEL.WEIGHTS", "w.pth")
    call(monkeypatch, capsys, "train", "--config-file", "x.yaml")
    assert [(f, a.eval_only, a.config_file) for f, a in seen] == [
        (module.train, True, "x.yaml"),
        (module.train, False, "x.yaml"),
    ]
    assert seen[0][1].opts == ["MODEL.WEIGHTS", "w.pth"]


def test_every_script_is_a_command_and_only_that():
    scripts = {path.stem for path in (ROOT / "tools").glob("*.py")} - ONLY_SCRIPTS
    modules = {regseg.module_of(name) for name in COMMANDS if name != "doctor"}
    called = set()
    for name in scripts:
        tree = ast.parse((ROOT / "tools" / f"{name}.py").read_text())
        (imported,) = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module != "pathlib"]
        assert [alias.name for alias in imported.names] == ["main"]
        called.add(imported.module)
    assert called <= modules


def test_help_needs_no_torch():
    code = (
        "import sys; from regseg_d2.commands import regseg; regseg.overview(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["train", "experiment"])
def test_what_every_training_imports_draws_no_figures(name):
    """Matplotlib takes half a second, of every process and of every worker that is started afresh."""
    code = f"import sys, regseg_d2.commands.{name}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["--images", "--limit", "--pixels-per-class"])
def test_counts_below_one_are_refused_before_anything_is_looked_at(name, monkeypatch, capsys):
    status, _, errors = call(monkeypatch, capsys, "explore", "run", name, "-1")
    assert status == 2 and f"{name} is -1; expected 1 or more" in errors
