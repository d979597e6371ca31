"""Tables of numbers: CSV for programs, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

from regseg_d2.drawing.figures.texts import readable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",  # shorthand of some languages
    "[": "{[}",  # an option of the line break before it
    "]": "{]}",
    "*": "{*}",  # likewise
}


class Latex(str):
    """LaTeX's own words, which a table takes as they are."""


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as CSV: numbers with six digits, what is not defined empty, texts as they are.

    Halves of characters, which no file in UTF-8 can hold, become the replacement character.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_csv_cell(header) for header in headers])
    writer.writerows([[_csv_cell(value) for value in row] for row in rows])
    return file.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return "" if math.isnan(value) else f"{float(value):.6g}"
    return re.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def latex_text(text: object) -> str:
    """Returns a text that LaTeX prints as it is, in one line; letters beyond ASCII need a font with them."""
    text = str(text) and readable(text)
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("--", "-{-}")


def latex_table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], *, digits: int = 2, texts: int = 1
) -> str:
    r"""Returns a ``tabular`` with the rules of booktabs, for ``\input`` into a document with that package.

    Args:
        headers: one a column.
        rows: cells, as many a row: whole numbers are printed as they are, others rounded, what is not
            defined as a dash; everything else is text, but for :class:`Latex`.
        digits: behind the point.
        texts: so many columns from the left are set to the left, the others to the right.

    Raises:
        ValueError: a row has not as many cells as there are headers.
    """
    columns = "l" * min(texts, len(headers)) + "r" * max(len(headers) - texts, 0)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(headers, digits), r"\midrule"]
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, and there are {len(headers)} headers")
        lines.append(_latex_row(row, digits))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[Any], digits: int) -> str:
    return " & ".join(_latex_cell(cell, digits) for cell in cells) + r" \\"


def _latex_cell(value: Any, digits: int) -> str:
    if isinstance(value, Latex):
        return value
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return "--"
    if isinstance(value, numbers.Integral):
        text = str(int(value))
    elif isinstance(value, numbers.Real):
        text = f"{float(value):.{digits}f}".replace("inf", r"$\infty$")
        text = text.removeprefix("-") if set(text) <= set("-0.") else text  # no minus zero
    else:
        return latex_text(value)
    return text.replace("-", "$-$")
