"""The report, for the terminal and as a page: one that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from regseg_d2.common.errors import printable
from regseg_d2.dataset_tools.inspection.collect import DatasetFacts
from regseg_d2.dataset_tools.inspection.samples import Problem
from regseg_d2.dataset_tools.inspection.tables import (
    Table,
    by_kind,
    class_weight_lines,
    summary_lines,
    tables_of,
)
from regseg_d2.dataset_tools.inspection.thumbnails import Thumbnail


def print_report(console: Console, all_facts: Sequence[DatasetFacts], *, shown: int | None = None) -> None:
    """Prints what was found, of each kind of problem ``shown`` at most; None lists all."""
    for facts in all_facts:
        console.rule(f"[bold]{_shown(facts.name)}")
        for line in summary_lines(facts):
            console.print(_shown(line), highlight=False, soft_wrap=True)
        for table in tables_of(facts):
            console.print(_rich_table(table))
        # Whole lines, whatever the terminal's width: they are there to be copied.
        for name, weights in class_weight_lines(facts):
            console.print(f"Class weights, {name}:\n  {_shown(weights)}", highlight=False, soft_wrap=True)
        for note in facts.notes:
            console.print(f"[yellow]Note:[/] {_shown(note)}", highlight=False, soft_wrap=True)
        _print_problems(console, facts.problems, shown)
        if facts.suggestion is not None:
            console.print("[bold]Suggested line of the declaration:", highlight=False)
            console.print(f"  {_shown(facts.suggestion.line)}", highlight=False, soft_wrap=True)
            console.print(f"  ({_shown(facts.suggestion.reason)})", highlight=False, soft_wrap=True)


def _shown(text: str) -> str:
    """A text with names of files and classes, without what rich or the terminal would obey."""
    return escape(printable(text, None))


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(
        title=table.title, title_justify="left", box=box.SIMPLE_HEAD, caption=table.note or None
    )
    drawn.caption_justify = "left"
    for column in table.columns:
        drawn.add_column(column)
    for row in table.rows:
        drawn.add_row(*map(_shown, row))
    return drawn


def _print_problems(console: Console, problems: Sequence[Problem], shown: int | None) -> None:
    if not problems:
        console.print("[green]No problem found.")
        return
    for kind, members in by_kind(problems):
        console.print(f"[red]{len(members)} problems: {kind}", highlight=False)
        for problem in members[:shown]:
            console.print(f"  {_shown(problem.text)}", highlight=False, soft_wrap=True)
        if shown is not None and len(members) > shown:
            console.print(f"  and {len(members) - shown} more, which the page lists", highlight=False)


def render_page(all_facts: Sequence[DatasetFacts], thumbnails: Sequence[Sequence[Thumbnail]]) -> str:
    """Returns the page, ``report.html`` filled in; every name in it is escaped."""
    loader = PackageLoader("regseg_d2.dataset_tools.inspection", "")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    functions = (by_kind, class_weight_lines, summary_lines, tables_of)
    environment.globals |= {function.__name__: function for function in functions}
    return environment.get_template("report.html").render(
        names=", ".join(facts.name for facts in all_facts),
        sections=list(zip(all_facts, thumbnails, strict=True)),
    )
