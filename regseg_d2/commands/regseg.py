"""``regseg COMMAND``: every command line of this package under one name."""

from __future__ import annotations

import difflib
import importlib
import sys

from regseg_d2.common.errors import errors_end_the_program

# What each command does. Its module is imported when it is called.
COMMANDS = {
    "train": "trains a network, and evaluates it",
    "eval": "evaluates a checkpoint",
    "predict": "predicts images",
    "export": "writes a network as ONNX, TorchScript or others, and compares",
    "serve": "predicts photos on a page in the browser",
    "bundle": "writes a trained model as one folder that loads anywhere",
    "check": "finds what is wrong with a data set",
    "split": "divides a data set: exact sizes, each class has its share",
    "compare": "compares the scores of runs",
    "experiment": "trains variants over several seeds, and says what differs",
    "explore": "shows what networks have learnt: figures, one page",
    "measure": "measures calibration, features, rare classes, corruptions",
    "analyze": "counts parameters and FLOPs, takes times and memory",
    "gradient-shares": "prints how much each loss pulls at the backbone",
    "visualize-data": "draws what the network sees in training",
    "convert-weights": "converts a checkpoint of another package",
    "convert-coco": "makes label files of COCO's annotations",
    "install-detectron2": "installs Detectron2, which PyPI has under another name only",
    "doctor": "shows versions and what works on this machine",
}
# Modules of those that have none of their name beside this one.
_ELSEWHERE = {
    "eval": "regseg_d2.commands.train",
    "install-detectron2": "regseg_d2.installation.install_detectron2",
    "doctor": "regseg_d2.apps.doctor.command",
}
_USAGE = 2


def module_of(command: str) -> str:
    """The module whose ``main`` a command calls."""
    return _ELSEWHERE.get(command, f"regseg_d2.commands.{command.replace('-', '_')}")


def overview() -> str:
    """Lists the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: regseg COMMAND ...", "", *lines, "", "regseg COMMAND --help lists the arguments of one."]
    )


def main() -> None:
    """Runs a command with the words that follow its name."""
    words = sys.argv[1:]
    if not words:
        print(overview(), file=sys.stderr)
        sys.exit(_USAGE)
    name, *rest = words
    if name in ("-h", "--help"):
        with errors_end_the_program():
            print(overview())
        return
    if name == "--version":
        from regseg_d2 import __version__

        print(f"regseg_d2 {__version__}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"{overview()}\n\nregseg: there is no command {name!r}.{hint}", file=sys.stderr)
        sys.exit(_USAGE)
    # The command's own parser takes its name for usage and errors from here.
    sys.argv = [f"regseg {name}", *(["--eval-only"] if name == "eval" else []), *rest]
    sys.exit(importlib.import_module(module_of(name)).main())
