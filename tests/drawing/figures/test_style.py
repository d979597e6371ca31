"""Files of figures: the same bytes, nothing of the outside in them, and names that do no harm."""

import io
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import WriteError
from regseg_d2.drawing.figures.matrix import confusion_matrices
from regseg_d2.drawing.figures.style import (
    FONT,
    figure_bytes,
    legend_above,
    look,
    new_figure,
    note,
    panel_grid,
    runs_legend,
    save_figure,
    styled,
    title,
)
from regseg_d2.drawing.figures.texts import cut, families_for
from tests.drawing.figures.test_texts import HOSTILE


def draw(names=("road", "sky"), runs=("baseline", "car")):
    counts = np.arange(1, len(names) ** 2 + 1).reshape(len(names), -1)
    return confusion_matrices({runs[0]: counts, runs[1]: counts.T}, names)


def test_a_figure_is_written_as_png_of_300_dpi_and_svg(tmp_path):
    paths = save_figure(draw(), tmp_path / "folder" / "v1.2")
    assert paths == [tmp_path / "folder" / "v1.2.svg", tmp_path / "folder" / "v1.2.png"]
    image = Image.open(paths[1])
    inches = draw().get_size_inches()
    assert image.size == tuple(int(300 * side) for side in inches)
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert ElementTree.parse(paths[0]).getroot().tag.endswith("svg")


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    figure = draw()
    first = [path.read_bytes() for path in save_figure(figure, tmp_path / "a")]
    again = [path.read_bytes() for path in save_figure(figure, tmp_path / "b")]
    other = [path.read_bytes() for path in save_figure(draw(), tmp_path / "c")]
    assert first == again == other
    for content in first:
        for word in (b"matplotlib.org", b"Matplotlib v", b"<dc:date>", b"Software"):
            assert word not in content


PROGRAM = """
import sys
import matplotlib
matplotlib.rcParams.update({"font.size": 30, "savefig.dpi": 10, "axes.facecolor": "red", "text.usetex": True})
before = dict(matplotlib.rcParams)
from tests.drawing.figures.test_style import draw
from regseg_d2.drawing.figures.style import save_figure
save_figure(draw(), sys.argv[1])
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_neither_the_process_nor_its_settings_nor_a_display_matter(tmp_path):
    """Another hash seed, other settings of Matplotlib, another backend, no display; and no pyplot."""
    expected = [path.read_bytes() for path in save_figure(draw(), tmp_path / "here")]
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"PYTHONHASHSEED": "7", "MPLBACKEND": "svg", "SOURCE_DATE_EPOCH": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "there")], check=True, env=environment)
    assert [(tmp_path / f"there.{kind}").read_bytes() for kind in ("svg", "png")] == expected


def test_hostile_names_are_drawn_and_inert():
    figure = draw(HOSTILE, runs=("$x_", "<script>"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figure_bytes(figure, "png", dpi=60)
        drawing = figure_bytes(figure, "svg")
    assert np.asarray(Image.open(io.BytesIO(picture))).std() > 10
    ElementTree.fromstring(drawing)
    assert b"<script" not in drawing and b"<text" not in drawing
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [cut(name, 20) for name in HOSTILE]


def test_names_are_no_tex_and_stay_in_legends():
    names = ["_first", "$x^2$", "%"]

    @styled
    def three():
        figure = new_figure(3, 2)
        figure.subplots().set_xlabel("$\\frac{")
        runs_legend(figure, names)
        return figure

    figure = three()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    figure_bytes(figure, "svg")
    with matplotlib.rc_context({"text.parse_math": True}):
        assert figure_bytes(figure, "svg") == figure_bytes(three(), "svg")


def test_letters_that_a_font_of_the_machine_has_are_drawn_with_it():
    letter = "\u27d0"  # in STIX, which comes with Matplotlib, and not in DejaVu Sans
    families, without = families_for([letter])
    figure = draw((f"a {letter}", "b"))
    figure_bytes(figure, "png", dpi=50)
    labels = {text.get_text(): text.get_fontfamily() for text in figure.axes[0].get_yticklabels()}
    assert labels[f"a {letter}"] == [FONT, *families]
    assert bool(families) != bool(without)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(WriteError, match="a.svg"):
        save_figure(draw(), tmp_path / "a")
    assert not (tmp_path / "a.png").exists()


def test_runs_differ_in_colour_mark_and_line():
    looks = [look(number) for number in range(7)]
    assert len({each["color"] for each in looks}) == len({each["marker"] for each in looks}) == 7
    assert look(30).keys() == {"color", "marker", "linestyle"}


def test_panels_are_filled_row_by_row_and_texts_broken_to_their_width():
    figure, panels = panel_grid(5, 3, (2.0, 1.0), (0.5, 0.25))
    assert figure.get_size_inches().tolist() == [6.5, 2.25] and len(panels) == len(figure.axes) == 5
    title(panels[0], "a_name_that_is_long", 0.6, below="3 %")
    assert panels[0].get_title().split("\n")[-1] == "3 %" and panels[0].get_title().count("\n") > 1
    note(figure, "word " * 100)
    lines = figure.get_supxlabel().split("\n")
    assert len(lines) > 1 and "".join(lines).count("word") == 100
    legend_above(figure, [panels[0].plot([0], [0])[0]] * 9, ["a rather long name of a run"] * 9)
    assert 1 < figure.legends[0]._ncols < 9
