"""The look of all figures, and their files: the same arrays give the same bytes."""

from __future__ import annotations

import functools
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from regseg_d2.common.files import atomic_writer
from regseg_d2.drawing.figures.texts import FONT, balanced, families_for, letters_in, width_of, wrapped

WIDTH = 7.2  # inches: two columns of a journal
DPI = 300
Kind = Literal["png", "svg"]
KINDS: tuple[Kind, ...] = ("svg", "png")
# Of Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, LIGHT, ABSENT = "#595959", "#8C8C8C", "#D9D9D9"
_COLORS, _MARKERS, _LINES = (
    [BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, "black"],
    "os^DvPX",
    ["-", "--", "-.", ":"],
)

_STYLE: dict[str, Any] = {
    "svg.hashsalt": "regseg_d2",
    "svg.fonttype": "path",
    "font.family": FONT,
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

FigurePart = Figure | SubFigure
Arguments = ParamSpec("Arguments")


@contextmanager
def drawing_style() -> Iterator[None]:
    """Within the block Matplotlib draws in this package's style, whatever is set outside; not the backend."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    del settings["backend"]
    with matplotlib.rc_context(settings):
        yield


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Makes a function that returns a figure draw in :func:`drawing_style`."""

    @functools.wraps(draw)
    def draw_styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with drawing_style():
            return draw(*args, **kwargs)

    return draw_styled


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """Returns an empty figure of a size in inches, whose layout keeps labels apart.

    The compressed layout moves panels of a fixed shape together.
    """
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def panel_grid(
    count: int, columns: int, panel: tuple[float, float], margin: tuple[float, float], **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of so many panels, filled row by row.

    Args:
        count: of panels.
        columns: at most so many beside each other.
        panel: width and height of one, in inches.
        margin: width and height that the figure has beside them.
        shared: ``sharex`` and ``sharey``, as of Matplotlib's ``subplots``.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(margin[0] + panel[0] * columns, margin[1] + panel[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def look(number: int) -> dict[str, Any]:
    """Returns colour, marker and line of a run: no two of the first seven share a colour or a marker."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
    }


def title(axes: Axes, text: str, inches: float, points: float = 8, below: str = "") -> None:
    """Puts a name over a panel, in as many lines as its width asks for, and a line of its own below it."""
    text = balanced(text, letters_in(inches, points))
    axes.set_title(f"{text}\n{below}" if below else text, fontsize=points)


def legend_columns(labels: Sequence[str], inches: float, points: float) -> int:
    """Returns how many entries of a legend fit beside each other."""
    longest = max((width_of(line) for label in labels for line in label.split("\n")), default=1)
    return max(1, min(len(labels), int(inches * 72 / (points * (0.62 * longest + 4)))))


def legend_height(labels: Sequence[str], inches: float, points: float) -> float:
    """Returns the height in inches that a legend takes above panels."""
    return 0.1 + 0.021 * points * math.ceil(len(labels) / legend_columns(labels, inches, points))


def legend_above(
    figure: FigurePart,
    handles: Sequence[Any],
    labels: Sequence[str],
    notes: Sequence[str] = (),
    **options: Any,
) -> None:
    """Puts a legend above all panels, in as many columns as fit into the figure's width.

    Args:
        figure: the figure, or a part of one.
        handles: what is explained.
        labels: names, broken where they are longer than the figure is wide.
        notes: what stands behind each name, or below it where it does not fit.
        options: of Matplotlib's legend.
    """
    points, inches = options.setdefault("fontsize", 7.5), inches_wide(figure)
    letters = letters_in(inches - 0.5, points)
    texts = [wrapped(label, letters) for label in labels]
    for number, remark in enumerate(notes):
        fits = width_of(texts[number]) + width_of(remark) < letters
        texts[number] += (" " if fits else "\n") + remark
    columns = legend_columns(texts, inches, points)
    figure.legend(list(handles), texts, loc="outside upper center", ncols=columns, **options)


def runs_legend(figure: FigurePart, labels: Sequence[str], *, lines: bool = False, **options: Any) -> None:
    """Puts the legend of runs above all panels: their marks, or their lines."""
    handles = []
    for parts in map(look, range(len(labels))):
        kind = {"marker": ""} if lines else {"linestyle": "", "markersize": 4.5, "markeredgewidth": 0}
        handles.append(Line2D([], [], **(parts | kind)))
    legend_above(figure, handles, labels, **options)


def note(figure: FigurePart, text: str) -> None:
    """Puts a remark for the reader below all panels."""
    lines = textwrap.fill(text, letters_in(inches_wide(figure) - 0.2, 6.5))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color=GREY)


def inches_wide(figure: FigurePart) -> float:
    """Returns the width of a figure, or of a part of one, in inches."""
    return figure.bbox.width / figure.dpi


def figure_bytes(figure: Figure, kind: Kind, dpi: int = DPI) -> bytes:
    """Returns a figure as a file's content: no dates, no versions, no chance in it.

    Letters that DejaVu Sans lacks are drawn with a font of this machine that has them; where there is none,
    as a box.

    Args:
        figure: any figure of Matplotlib.
        kind: of file.
        dpi: pixels of a PNG, and of pictures inside an SVG, an inch.
    """
    metadata: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    file = io.BytesIO()
    with drawing_style(), _quiet_about_letters():
        FigureCanvasAgg(figure)
        _set_fonts(figure)
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
    return file.getvalue()


def fix_layout(figure: Figure) -> None:
    """Lays a figure out for good: all files of it look the same, whichever is written first."""
    with drawing_style(), _quiet_about_letters():
        FigureCanvasAgg(figure)
        _set_fonts(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # The layout is solved in an order that depends on where in memory its parts are, and their last bits
        # with it, of which an SVG makes names.
        for axes in figure.axes:
            axes.set_position(np.round(axes.get_position(original=True).bounds, 9).tolist())


@contextmanager
def _quiet_about_letters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _set_fonts(figure: Figure) -> None:
    texts: list[Any] = figure.findobj(Text)
    families, _ = families_for(text.get_text() for text in texts)
    if families:
        for text in texts:
            text.set_fontfamily([FONT, *families])


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Writes ``<stem>.svg`` and, at 300 dpi, ``<stem>.png``; returns their paths.

    The layout is that of the figure's first call. Two figures of the same arrays give the same bytes, and
    so does one that is saved again.

    Raises:
        WriteError: a file cannot be written.
    """
    fix_layout(figure)
    paths = []
    for kind in KINDS:
        path = Path(f"{stem}.{kind}")
        with atomic_writer(path, "wb") as file:
            file.write(figure_bytes(figure, kind))
        paths.append(path)
    return paths
