"""Overlays and legends, by their pixels."""

import errno

import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import UserError
from regseg_d2.drawing.overlay import (
    MIN_LEGEND_WIDTH,
    LegendEntry,
    blend,
    draw_legend,
    fitting_text,
    legend_of,
    text_font,
    with_legend,
    write_picture,
)

COLORS = np.array([[200, 100, 0], [0, 0, 255]], dtype=np.uint8)


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.5, 1.0])
def test_classes_are_mixed_with_the_image_and_rounded(opacity):
    image = np.array([[[100, 101, 102], [7, 250, 255]]], dtype=np.uint8)
    blended = blend(image, np.array([[0, 1]]), COLORS, opacity)
    exact = (1 - opacity) * image.astype(float) + opacity * COLORS[[[0, 1]]].astype(float)
    assert blended.dtype == np.uint8
    assert blended.tolist() == np.floor(exact + 0.5).astype(int).tolist()


def test_one_blend_by_hand():
    blended = blend(np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]]), COLORS)
    assert blended.tolist() == [[[150, 100, 50], [50, 50, 178]]]


@pytest.mark.parametrize("void", [255, 2, -1])
def test_pixels_without_a_class_are_striped_black_on_a_whitened_image(void):
    blended = blend(np.full((8, 8, 3), 10, np.uint8), np.full((8, 8), void), COLORS)
    assert blended[0, :, 0].tolist() == [0, 0, 0, 0, 133, 133, 133, 133]
    assert blended[4, :, 0].tolist() == [133, 133, 133, 133, 0, 0, 0, 0]  # the stripes are diagonal
    assert blended[3, :, 0].tolist() == [0, 133, 133, 133, 133, 0, 0, 0]


def test_legend_lists_what_is_there_the_largest_first_and_void_last():
    label = np.array([[1, 1, 1, 0], [255, 255, 255, 255]])
    assert legend_of(label, ["a", "b"], COLORS) == [
        LegendEntry("b", (0, 0, 255), "37.5 %"),
        LegendEntry("a", (200, 100, 0), "12.5 %"),
        LegendEntry("no class", None, "50.0 %"),
    ]
    assert legend_of(np.zeros((2, 2), np.uint8), ["a", "b"], COLORS) == [
        LegendEntry("a", (200, 100, 0), "100.0 %")
    ]
    rare = np.zeros((100, 100), np.uint8)
    rare[0, 0] = 1
    assert legend_of(rare, ["a", "b"], COLORS)[1].note == "< 0.1 %"


def test_legend_has_a_field_of_the_exact_colour_and_text_beside_it():
    legend = draw_legend([LegendEntry("crop", (1, 2, 3))], 300)
    assert legend.shape[1] == 300
    assert (legend == [1, 2, 3]).all(axis=2).sum() > 150  # 24 x 12 pixels without their border
    dark = (legend < 100).all(axis=2)
    assert dark[:, 40:].sum() > 40  # the name


def test_long_legend_takes_several_columns_and_shows_every_colour():
    entries = [LegendEntry(f"class {i}", (i, 255 - i, 77)) for i in range(150)]
    legend = draw_legend(entries, 1200)
    assert legend.shape[0] < 150 * 12  # one column would be taller
    found = {tuple(color) for color in np.unique(legend.reshape(-1, 3), axis=0).tolist()}
    assert {entry.color for entry in entries} <= found


def test_small_picture_keeps_its_pixels_and_gets_room_for_names():
    picture = np.full((5, 7, 3), 9, np.uint8)
    sheet = with_legend(picture, [LegendEntry("a class", (0, 0, 255))])
    assert sheet.shape[1] == MIN_LEGEND_WIDTH
    assert sheet.shape[0] > 5 + 12
    assert (sheet[:5, :7] == 9).all()
    assert (sheet[:5, 7:] == 255).all()
    assert with_legend(picture, []) is picture


def test_names_that_do_not_fit_are_cut():
    font = text_font(12)
    assert fitting_text("weed", font, 1000) == "weed"
    cut = fitting_text("x" * 300, font, 100)
    assert cut.endswith("…") and font.getlength(cut) <= 100 < font.getlength(cut[:-1] + "xxx")


def test_umlauts_and_greek_are_drawn():
    drawn = [
        np.asarray(draw_legend([LegendEntry(name, (0, 0, 0))], 240)) for name in ("ü", "λ", "\U0010ffff")
    ]
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[1], drawn[2])


def test_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"a\.png cannot be written: .*Input/output error"):
        write_picture(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
