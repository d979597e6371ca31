"""Tables: CSV that is read back, LaTeX that prints what it was given."""

import csv
import io
import re

import numpy as np
import pytest

from regseg_d2.drawing.figures.tables import csv_text, latex_table, latex_text
from regseg_d2.drawing.figures.texts import readable
from tests.drawing.figures.test_texts import HOSTILE

COMMANDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textasciigrave": "`",
    "char34": '"',
}


def printed(source):
    """What TeX makes of our few commands: a reader of its own, letter by letter."""
    text, rest, depth = "", source, 0
    while rest:
        command = re.match(r"\\([a-z]+[0-9]*)\{\}", rest)
        if command:
            text += COMMANDS[command[1]]
            rest = rest[command.end() :]
        elif rest[0] == "\\":
            assert rest[1] in "{}$&%#_"
            text, rest = text + rest[1], rest[2:]
        elif rest[0] in "{}":
            depth += 1 if rest[0] == "{" else -1
            rest = rest[1:]
        else:
            assert rest[0] not in '$&%#_^~<>|`"'
            text, rest = text + rest[0], rest[1:]
    assert depth == 0
    return text


@pytest.mark.parametrize("text", [*HOSTILE, "a--b---c", "\\input{/etc/passwd}", "\\\\[5cm]", "*x", "{}"])
def test_latex_prints_the_text_that_it_was_given(text):
    source = latex_text(text)
    assert printed(source) == (readable(text) if text else "")
    assert "--" not in source and not source.startswith(("[", "*"))


def test_a_latex_table():
    rows = [
        ["road_1", np.float32(71.256), np.int64(12), -0.5],
        ["100 %", float("nan"), None, -0.001],
        ["[x]", float("inf"), 0, -float("inf")],
    ]
    assert latex_table(["", "IoU (%)", "images", "change"], rows) == "\n".join(
        [
            r"\begin{tabular}{lrrr}",
            r"\toprule",
            r" & IoU (\%) & images & change \\",
            r"\midrule",
            r"road\_1 & 71.26 & 12 & $-$0.50 \\",
            r"100 \% & -- & -- & 0.00 \\",
            r"{[}x{]} & $\infty$ & 0 & $-$$\infty$ \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
    assert latex_table(["a", "b"], [["x", "y"]], texts=2, digits=0).startswith(r"\begin{tabular}{ll}")
    with pytest.raises(ValueError, match="1 cells, and there are 2"):
        latex_table(["a", "b"], [["x"]])


def test_csv_is_read_back():
    values = [1 / 3, np.float32(0.1), float("nan"), None, 7, np.int64(123456789), -2.5e-9]
    rows = [[name, *values] for name in HOSTILE if "\0" not in name]
    read = list(csv.reader(io.StringIO(csv_text(["name", *"abcdefg"], rows), newline="")))
    assert read[0] == ["name", *"abcdefg"]
    assert [row[0] for row in read[1:]] == [row[0].replace("\ud800", "\ufffd") for row in rows]
    for row in read[1:]:
        assert row[1:] == ["0.333333", "0.1", "", "", "7", "123456789", "-2.5e-09"]
