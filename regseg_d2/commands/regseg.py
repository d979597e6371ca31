"""``regseg COMMAND``: every command line of this package under one name."""

from __future__ import annotations

import difflib
import importlib
import sys

from regseg_d2.common.errors import errors_end_the_program

# Command -> (module of its main, words put before its arguments, what it does). A module is imported when its
# command is called.
_HERE = "regseg_d2.commands"
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": (f"{_HERE}.train", (), "trains a network, and evaluates it"),
    "eval": (f"{_HERE}.train", ("--eval-only",), "evaluates a checkpoint"),
    "predict": (f"{_HERE}.predict", (), "predicts images"),
    "export": (
        f"{_HERE}.export",
        (),
        "writes a network as ONNX, TorchScript or others, and compares",
    ),
    "serve": (f"{_HERE}.serve", (), "predicts photos on a page in the browser"),
    "bundle": (f"{_HERE}.bundle", (), "writes a trained model as one folder that loads anywhere"),
    "check": (f"{_HERE}.check", (), "finds what is wrong with a data set"),
    "split": (f"{_HERE}.split", (), "divides a data set: exact sizes, each class has its share"),
    "compare": (f"{_HERE}.compare", (), "compares the scores of runs"),
    "experiment": (f"{_HERE}.experiment", (), "trains variants over several seeds, and says what differs"),
    "explore": (f"{_HERE}.explore", (), "shows what networks have learnt: figures, one page"),
    "measure": (f"{_HERE}.measure", (), "measures calibration, features, rare classes, corruptions"),
    "analyze": (f"{_HERE}.analyze", (), "counts parameters and FLOPs, takes times and memory"),
    "gradient-shares": (f"{_HERE}.gradient_shares", (), "prints how much each loss pulls at the backbone"),
    "visualize-data": (f"{_HERE}.visualize_data", (), "draws what the network sees in training"),
    "convert-weights": (f"{_HERE}.convert_weights", (), "converts a checkpoint of another package"),
    "convert-coco": (f"{_HERE}.convert_coco", (), "makes label files of COCO's annotations"),
    "install-detectron2": (
        "regseg_d2.installation.install_detectron2",
        (),
        "installs Detectron2, which PyPI has under another name only",
    ),
    "doctor": ("regseg_d2.apps.doctor.command", (), "shows versions and what works on this machine"),
}
_USAGE = 2


def overview() -> str:
    """Lists the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, _, what) in COMMANDS.items()]
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
    module, first, _ = COMMANDS[name]
    # The command's own parser takes its name for usage and errors from here.
    sys.argv = [f"regseg {name}", *first, *rest]
    sys.exit(importlib.import_module(module).main())
