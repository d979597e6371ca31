"""The report as one page that needs no network and no script: ``report.html``, filled in."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader

from regseg_d2.dataset_tools.inspection.collect import DatasetFacts
from regseg_d2.dataset_tools.inspection.tables import (
    by_kind,
    class_weight_lines,
    summary_lines,
    tables_of,
)
from regseg_d2.dataset_tools.inspection.thumbnails import Thumbnail


def render_page(all_facts: Sequence[DatasetFacts], thumbnails: Sequence[Sequence[Thumbnail]]) -> str:
    """Writes the page.

    Args:
        all_facts: facts of the data sets.
        thumbnails: pictures of each.

    Returns:
        HTML; every name in it is escaped.
    """
    loader = PackageLoader("regseg_d2.dataset_tools.inspection", "")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= {
        "by_kind": by_kind,
        "class_weight_lines": class_weight_lines,
        "summary_lines": summary_lines,
        "tables_of": tables_of,
    }
    return environment.get_template("report.html").render(
        names=", ".join(facts.name for facts in all_facts),
        sections=list(zip(all_facts, thumbnails, strict=True)),
    )
