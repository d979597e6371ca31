"""The report as one page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from regseg_d2.dataset_tools.inspection.collect import DatasetFacts
from regseg_d2.dataset_tools.inspection.samples import Problem
from regseg_d2.dataset_tools.inspection.tables import Table, class_weight_lines, summary_lines, tables_of
from regseg_d2.dataset_tools.inspection.thumbnails import Thumbnail
from regseg_d2.drawing.overlay import LegendEntry

# Lists of more problems than this are folded up.
_OPEN_UP_TO = 20

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1200px;
  margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; } h2 { border-top: 2px solid #ccc; padding-top: .8em; margin-top: 2em; }
table { border-collapse: collapse; margin: .5em 0 1em; }
th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #e4e4e4;
  vertical-align: middle; }
th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.bar { width: 180px; } .bar div { height: .8em; background: #4a7ab5; min-width: 1px; }
.field { display: inline-block; width: 1.4em; height: 1em; border: 1px solid #555;
  vertical-align: -.15em; margin-right: .4em; }
.void { background: repeating-linear-gradient(45deg, #000 0 3px, #fff 3px 6px); }
.bad { color: #a40000; } .good { color: #1d6b1d; } .note { color: #7a5200; }
pre { background: #f4f4f4; padding: .7em 1em; overflow-x: auto; }
figure { display: inline-block; margin: 0 1em 1.5em 0; vertical-align: top; max-width: 820px; }
figure img { max-width: 400px; image-rendering: auto; } figcaption { font-size: 13px; }
.entry { white-space: nowrap; }
li { overflow-wrap: anywhere; }
"""


def render_page(all_facts: Sequence[DatasetFacts], thumbnails: Sequence[Sequence[Thumbnail]]) -> str:
    """Writes the page.

    Args:
        all_facts: facts of the data sets.
        thumbnails: pictures of each.

    Returns:
        HTML; every name in it is escaped.
    """
    names = ", ".join(facts.name for facts in all_facts)
    sections = [_section(facts, shown) for facts, shown in zip(all_facts, thumbnails, strict=True)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Check of {escape(names)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Check of {escape(names)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def _section(facts: DatasetFacts, thumbnails: Sequence[Thumbnail]) -> str:
    parts = [f"<h2>{escape(facts.name)}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in summary_lines(facts)]
    parts += [_problems(facts.problems)]
    if facts.suggestion is not None:
        parts += [
            "<h3>Suggested line of the declaration</h3>",
            f"<pre>{escape(facts.suggestion.line)}</pre>",
            f"<p>{escape(facts.suggestion.reason)}</p>",
        ]
    parts += [f'<p class="note">{escape(note)}</p>' for note in facts.notes]
    parts += [_table(table) for table in tables_of(facts)]
    weights = class_weight_lines(facts)
    if weights:
        parts.append("<h3>Class weights</h3>")
        parts += [f"<p>{escape(name)}</p><pre>{escape(values)}</pre>" for name, values in weights]
    if thumbnails:
        parts.append("<h3>Samples</h3>")
        parts += [_figure(thumbnail) for thumbnail in thumbnails]
    return "\n".join(parts)


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return '<p class="good">No problem found.</p>'
    parts = [f'<h3 class="bad">{len(problems)} problems</h3>']
    for kind, group in groupby(problems, key=lambda problem: problem.kind):
        members = list(group)
        items = "\n".join(f"<li>{escape(problem.text)}</li>" for problem in members)
        is_open = " open" if len(members) <= _OPEN_UP_TO else ""
        parts.append(
            f'<details{is_open}><summary class="bad">{len(members)}: {escape(kind)}</summary>\n'
            f"<ul>\n{items}\n</ul></details>"
        )
    return "\n".join(parts)


def _table(table: Table) -> str:
    heads = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    heads += "<th></th>" if table.shares is not None else ""
    rows = []
    for i, row in enumerate(table.rows):
        cells = [escape(cell) for cell in row]
        if table.colors is not None:
            cells[0] = _field(tuple(table.colors[i])) + cells[0]
        bar = ""
        if table.shares is not None:
            bar = f'<td class="bar"><div style="width:{100 * table.shares[i]:.1f}%"></div></td>'
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + bar + "</tr>")
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3>\n<table>\n<tr>{heads}</tr>\n" + "\n".join(rows) + f"\n</table>{note}"
    )


def _figure(thumbnail: Thumbnail) -> str:
    name = escape(thumbnail.image_id)
    legend = " &ensp; ".join(_legend_entry(entry) for entry in thumbnail.legend)
    return (
        f'<figure><img src="{thumbnail.image}" alt="{name}"> '
        f'<img src="{thumbnail.overlay}" alt="{name} with its labels">'
        f"<figcaption><b>{name}</b><br>{legend}</figcaption></figure>"
    )


def _legend_entry(entry: LegendEntry) -> str:
    return f'<span class="entry">{_field(entry.color)}{escape(entry.name)} {escape(entry.note)}</span>'


def _field(color: tuple[int, int, int] | None) -> str:
    if color is None:
        return '<span class="field void"></span>'
    red, green, blue = (int(part) for part in color)
    return f'<span class="field" style="background:rgb({red},{green},{blue})"></span>'
