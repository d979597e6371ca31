"""From networks to a folder of figures, the numbers behind them, and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from regseg_d2.apps.explore.figures import METHOD_NAMES, Drawn, draw_all
from regseg_d2.apps.explore.gallery import Gallery, choose_images
from regseg_d2.apps.explore.numbers import write_numbers, write_tables
from regseg_d2.apps.explore.page.content import PageContent, PagePixels, PageRun
from regseg_d2.apps.explore.page.page import write_page
from regseg_d2.apps.explore.sources import Source
from regseg_d2.apps.explore.study import Options, Study, study
from regseg_d2.drawing.figures.style import save_figure

PAGE = "page.html"


def explore(
    sources: Sequence[Source],
    output: str | Path,
    options: Options | None = None,
    *,
    title: str = "",
    command: str = "",
    say: Callable[[str], None] = print,
) -> Path:
    """Looks at networks on one data set, and writes what there is to see.

    Equal arguments make equal files, byte for byte, on one machine.

    Args:
        sources: the networks; the first is what the others are compared with.
        output: the folder to write to: ``page.html``, ``figures/``, ``numbers/`` and ``tables/``.
        options: how much is looked at.
        title: what the page says at its top.
        command: how it was made, for the page.
        say: takes lines for people.

    Returns:
        The page.

    Raises:
        UserError: networks do not fit together, or a file cannot be written.
    """
    folder = Path(output)
    found = study(sources, options or Options())
    choice = choose_images(found)
    write_numbers(found, folder / "numbers")
    write_tables(found, folder / "tables")
    with TemporaryDirectory() as temporary:
        gallery = Gallery(found, choice.all, Path(temporary))
        captions = []
        for drawn in track(draw_all(found, gallery, choice), "drawing", transient=True):
            captions.append((drawn.caption, _save(drawn, folder / "figures")))
        write_page(_content(found, gallery, captions, title, command), folder / PAGE)
    say(f"Wrote {len(captions)} figures, the numbers behind them and {PAGE} to {folder}")
    return folder / PAGE


def _save(drawn: Drawn, folder: Path) -> Path:
    """Writes PNG and SVG; returns the PNG."""
    return next(path for path in save_figure(drawn.figure, folder / drawn.name) if path.suffix == ".png")


def _content(
    found: Study, gallery: Gallery, captions: Sequence[tuple[str, Path]], title: str, command: str
) -> PageContent:
    first, pixels = found.explored[0].findings, found.pixels
    settings = found.differing_settings()
    return PageContent(
        title=title or " and ".join(each.name for each in found.explored),
        classes=found.classes,
        colors=found.colors,
        image_names=first.image_names.tolist(),
        runs=[
            PageRun(each.name, config, each.metrics(), each.findings.confusion, each.findings.pair_images)
            for each, config in zip(found.explored, settings, strict=True)
        ],
        images=gallery,
        pixels=PagePixels(
            image=first.pixel_image[pixels],
            y=first.pixel_y[pixels],
            x=first.pixel_x[pixels],
            label=first.pixel_label[pixels],
            predicted=[each.findings.pixel_predicted[pixels] for each in found.explored],
            confidence=[each.findings.pixel_confidence[pixels] for each in found.explored],
            projections={METHOD_NAMES[name]: xy for name, xy in found.pixel_projections.items()},
        ),
        figures=captions,
        command=command,
    )
