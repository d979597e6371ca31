"""Sheets of predictions, by their pixels."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from regseg_d2.drawing.overlay import LegendEntry, blend, draw_legend, text_font
from regseg_d2.drawing.sheets import CAPTION, GAP, TITLE, SheetRow, prediction_sheet

NAMES = ["sky", "ground", "car"]
COLORS = np.array([[10, 20, 200], [90, 60, 30], [250, 0, 0]], dtype=np.uint8)
TITLES = ("image", "label", "prediction")


def part(sheet, number, top, width, height):
    left = number * (width + GAP)
    return sheet[top : top + height, left : left + width]


def written(text, size, points):
    """A text on white, as Pillow draws it."""
    bar = Image.new("RGB", size[::-1], "white")
    draw = ImageDraw.Draw(bar)
    draw.text((2, size[0] / 2), text, fill=(20, 20, 20), font=text_font(points), anchor="lm")
    return np.asarray(bar)


def enlarged(values, factor):
    return values.repeat(factor, 0).repeat(factor, 1)


def test_a_small_image_is_enlarged_and_every_part_is_where_its_title_is():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    label = rng.integers(0, 2, (20, 30))
    prediction = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    sheet = prediction_sheet([SheetRow("val/7.png", image, [label, prediction])], TITLES, NAMES, COLORS)
    width, height = 270, 180  # 9 times as large, the least that is 256 wide
    top = TITLE + CAPTION
    assert np.array_equal(part(sheet, 0, top, width, height), enlarged(image, 9))
    assert np.array_equal(part(sheet, 1, top, width, height), enlarged(COLORS[label], 9))
    assert np.array_equal(part(sheet, 2, top, width, height), enlarged(COLORS[prediction], 9))
    for number, title in enumerate(TITLES):
        assert np.array_equal(part(sheet, number, 0, width, TITLE), written(title, (TITLE, width), 14))
    caption = written("val/7.png", (CAPTION, sheet.shape[1]), 12)
    assert np.array_equal(sheet[TITLE:top], caption)
    counts = np.bincount(label.ravel(), minlength=3) + np.bincount(prediction.ravel(), minlength=3)
    entries = [LegendEntry(NAMES[i], tuple(COLORS[i].tolist())) for i in np.argsort(-counts, kind="stable")]
    assert np.array_equal(sheet[top + height + GAP :], draw_legend(entries, sheet.shape[1]))


def test_void_is_hatched_and_in_the_legend():
    image = np.full((256, 256, 3), 100, dtype=np.uint8)
    label = np.full((256, 256), 255)
    label[:, :100] = 1
    sheet = prediction_sheet([SheetRow("", image, [label])], TITLES[:2], NAMES, COLORS)
    shown = part(sheet, 1, TITLE + CAPTION, 256, 256)
    assert (shown[:, :100] == COLORS[1]).all()
    assert {tuple(pixel) for pixel in shown[:, 100:].reshape(-1, 3).tolist()} == {(0, 0, 0), (178, 178, 178)}
    assert np.array_equal(shown, blend(image, label, COLORS, 1.0))
    entries = [LegendEntry("ground", (90, 60, 30)), LegendEntry("no class", None)]
    assert np.array_equal(sheet[TITLE + CAPTION + 256 + GAP :], draw_legend(entries, sheet.shape[1]))


def test_large_images_shrink_and_labels_are_not_mixed():
    image = np.zeros((1024, 2048, 3), dtype=np.uint8)
    image[:, ::4] = 200  # one of the four columns that become one
    label = np.zeros((1024, 2048), dtype=np.int32)
    label[:, 1024:] = 2
    sheet = prediction_sheet([SheetRow("", image, [label])], TITLES[:2], NAMES, COLORS)
    assert (part(sheet, 0, TITLE + CAPTION, 512, 256) == 50).all()
    shown = part(sheet, 1, TITLE + CAPTION, 512, 256)
    assert (shown[:, :256] == COLORS[0]).all()
    assert (shown[:, 256:] == COLORS[2]).all()


def test_rows_of_several_sizes_stand_below_each_other():
    """The second is as wide as the first, the third no more than twice as high as wide."""
    sizes = [(100, 400), (50, 100), (1000, 10)]
    rows = [
        SheetRow(f"{i}", np.full((*size, 3), 80 + i, np.uint8), [np.full(size, i), np.full(size, 2 - i)])
        for i, size in enumerate(sizes)
    ]
    sheet = prediction_sheet(rows, TITLES, NAMES, COLORS)
    top, shown = TITLE, [(100, 400), (200, 400), (800, 8)]
    for i, (height, width) in enumerate(shown):
        assert np.array_equal(sheet[top : top + CAPTION], written(f"{i}", (CAPTION, sheet.shape[1]), 12))
        for number, color in enumerate([np.full(3, 80 + i), COLORS[i], COLORS[2 - i]]):
            left = number * (400 + GAP)
            assert (sheet[top + CAPTION : top + CAPTION + height, left : left + width] == color).all()
            if i == 2:
                assert (sheet[top + CAPTION :, left + width : left + 400][:height] == 255).all()
        top += CAPTION + height + GAP


@pytest.mark.parametrize("resized", [(40, 60), (7, 5)])
def test_an_image_of_another_size_than_its_label(resized):
    image = np.full((*resized, 3), 9, dtype=np.uint8)
    sheet = prediction_sheet([SheetRow("", image, [np.zeros((256, 256), int)])], TITLES[:2], NAMES, COLORS)
    assert (part(sheet, 0, TITLE + CAPTION, 256, 256) == 9).all()


def test_long_names_show_their_ends_and_line_breaks_are_written_out():
    name = "folder/" * 99 + "last.png"
    row = SheetRow(name, np.zeros((4, 4, 3), np.uint8), [np.zeros((4, 4), int)])
    sheet = prediction_sheet([row], ["image", "a\nb"], NAMES, COLORS)
    room = sheet.shape[1] - 4
    ends = [f"…{name[-k:]}" for k in range(1, 200)]
    longest = max((end for end in ends if text_font(12).getlength(end) <= room), key=len)
    assert 40 < len(longest) < 150
    bar = sheet[TITLE : TITLE + CAPTION]
    assert np.array_equal(bar, written(longest, bar.shape[:2], 12))
    assert np.array_equal(part(sheet, 1, 0, 256, TITLE), written("a\\nb", (TITLE, 256), 14))
