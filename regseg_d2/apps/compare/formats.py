"""Tables as text, Markdown and LaTeX, with any name printed as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tabulate import tabulate

from regseg_d2.drawing.figures.tables import Latex, latex_table


class Table(NamedTuple):
    """A table whose cells are texts already.

    Attributes:
        title: stands above it.
        headers: one a column.
        rows: as many cells each; the first one is a name.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


class TableFormat(NamedTuple):
    """How parts of a report are written.

    Attributes:
        table: a table with its title.
        paragraph: a sentence beside the tables.
    """

    table: Callable[[Table], str]
    paragraph: Callable[[str], str]


def one_line(text: str) -> str:
    """Returns a text whose line breaks, tabs and runs of spaces are one space each."""
    return " ".join(text.split())


def text_table(table: Table) -> str:
    """Returns a table for the terminal."""
    return f"== {one_line(table.title)} ==\n\n{_tabulated(table, 'simple', one_line)}"


_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~&$]")


def markdown_text(text: str) -> str:
    """Returns a text that Markdown shows as it is, within a cell of a table, too."""
    return _MARKDOWN.sub(lambda sign: "\\" + sign[0], one_line(text))


def markdown_table(table: Table) -> str:
    """Returns a table in GitHub's Markdown."""
    return f"### {markdown_text(table.title)}\n\n{_tabulated(table, 'github', markdown_text)}"


def latex_comment(text: str) -> str:
    """Returns a text as a comment of one line."""
    return f"% {one_line(text)}"


def latex_booktabs(table: Table) -> str:
    r"""Returns a ``tabular`` with the rules of booktabs; its title is a comment."""
    rows = [[_latex_cell(cell) for cell in row] for row in table.rows]
    return f"{latex_comment(table.title)}\n{latex_table(table.headers, rows).rstrip()}"


def _latex_cell(cell: str) -> str | None:
    if cell == "-":
        return None
    number = re.fullmatch(r"([-+]?)(\d[\d.]*)(?: ± (\d[\d.]*))?", cell)
    if number is None:
        return cell
    sign, value, spread = number.groups()
    return Latex((sign and f"${sign}$") + value + (rf" $\pm$ {spread}" if spread else ""))


def _tabulated(table: Table, style: str, escape: Callable[[str], str]) -> str:
    # tabulate must not read the cells as numbers and round them again.
    return tabulate(
        [[escape(cell) for cell in row] for row in table.rows],
        headers=[escape(header) for header in table.headers],
        tablefmt=style,
        disable_numparse=True,
        colalign=["left", *["right"] * (len(table.headers) - 1)] if table.rows else None,
    )


#: By their names on the command line. LaTeX's tables need ``\usepackage{booktabs}``.
TABLE_FORMATS = {
    "text": TableFormat(text_table, one_line),
    "markdown": TableFormat(markdown_table, markdown_text),
    "latex": TableFormat(latex_booktabs, latex_comment),
}
