"""Maps of predictions and errors, by their pixels."""

import numpy as np
import pytest

from regseg_d2.drawing.figures.maps import (
    MOST_LISTED,
    ShownImage,
    error_maps,
    error_picture,
    light_greys,
    prediction_maps,
    roomiest,
)

COLORS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
NAMES = ["road", "sky", "car"]
DARK, ORANGE, BLUE, WHITE = [51, 51, 51], [213, 94, 0], [0, 114, 178], [255, 255, 255]


def image(name="a.png", height=30, width=40, seed=0, runs=("one", "two"), classes=3):
    r = np.random.default_rng(seed)
    label = np.repeat(np.repeat(r.integers(-1, classes, (height // 10, width // 10)), 10, 0), 10, 1)
    predicted = {
        run: np.where(r.random(label.shape) < 0.3, r.integers(0, classes, label.shape), abs(label))
        for run in runs
    }
    pixels = r.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return ShownImage(name, pixels, label, predicted, {run: 12.34 * (i + 1) for i, run in enumerate(runs)})


def grid_of(figure, columns):
    return np.array(figure.axes).reshape(-1, columns)


def test_image_label_and_predictions_are_shown_pixel_by_pixel():
    images = [image(), image("b.png", 60, 40, 1)]
    grid = grid_of(prediction_maps(images, NAMES, COLORS), 4)
    assert [axes.get_title() for axes in grid[0]] == ["image", "label", "one", "two"]
    for line, shown in zip(grid, images, strict=True):
        assert line[0].get_ylabel() == shown.name
        assert (line[0].images[0].get_array() == shown.pixels).all()
        for axes, classes in zip(line[1:], (shown.label, *shown.predicted.values()), strict=True):
            expected = [[[0, 0, 0] if k < 0 else COLORS[k].tolist() for k in row] for row in classes.tolist()]
            assert axes.images[0].get_array().tolist() == expected
        assert [axes.texts[-1].get_text() for axes in line[2:]] == ["mIoU 12.3", "mIoU 24.7"]


def test_the_legend_has_the_largest_classes_first_and_regions_their_numbers():
    label = np.zeros((300, 400), dtype=np.int64)
    label[:, 100:200] = 2
    label[0, 399] = -1
    shown = ShownImage("a", np.zeros((300, 400, 3), np.uint8), label, {"run": np.zeros_like(label)})
    figure = prediction_maps([shown], NAMES, COLORS)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1 road", "2 car", "no label"]
    truth, prediction = figure.axes[1], figure.axes[2]
    numbers = {t.get_text(): t.get_position() for t in truth.texts}
    assert set(numbers) == {"1", "2"} and [t.get_text() for t in prediction.texts] == ["1"]
    for text, k in (("1", 0), ("2", 2)):
        x, y = numbers[text]
        assert label[y, x] == k


def test_classes_beyond_the_legend_are_counted():
    classes = MOST_LISTED + 6
    label = np.arange(classes).repeat(20)[None, :].repeat(4, 0)
    shown = ShownImage("a", np.zeros((*label.shape, 3), np.uint8), label, {"run": label})
    names = [f"c{k}" for k in range(classes)]
    figure = prediction_maps([shown], names, np.zeros((classes, 3), np.uint8))
    assert len(figure.legends[0].get_texts()) == MOST_LISTED
    assert figure.get_supxlabel().startswith("6 classes")


def test_errors_are_told_apart_by_whose_they_are():
    shown = image()
    grid = grid_of(error_maps([shown], 3), 3)
    valid = shown.label >= 0
    assert [axes.get_title() for axes in grid[0]] == ["image", "one", "two"]
    for axes, run in zip(grid[0, 1:], ("one", "two"), strict=True):
        picture = axes.images[0].get_array()
        for (row, column), k in np.ndenumerate(shown.label):
            first = shown.predicted["one"][row, column] != k
            wrong = shown.predicted[run][row, column] != k
            grey = [int(130 + (shown.pixels[row, column] @ [0.299, 0.587, 0.114]) * 95 / 255 + 0.5)] * 3
            expected = DARK if first and wrong else ORANGE if wrong else BLUE if first else grey
            assert picture[row, column].tolist() == (WHITE if k < 0 else expected)
        share = 100 * np.mean(shown.predicted[run][valid] != shown.label[valid])
        assert axes.texts[0].get_text() == f"{share:.1f} % wrong"


def test_the_legend_of_errors_fits_the_number_of_runs():
    texts = [
        [t.get_text() for t in error_maps([image(runs=runs)], 3).legends[0].get_texts()]
        for runs in (("one",), ("one", "two"))
    ]
    assert texts == [
        ["wrong", "no label"],
        ["wrong, in one too", "wrong here alone", "right here, wrong in one", "no label"],
    ]
    all_void = ShownImage(
        "v", np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255), {"r": np.zeros((8, 8), int)}
    )
    assert error_maps([all_void], 3).axes[1].texts[0].get_text() == "0.0 % wrong"


def test_greys_are_light_and_keep_their_order():
    assert light_greys(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).tolist() == [[130, 225]]
    none = np.zeros((1, 2), bool)
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert error_picture(pixels, none, none, none)[0, :, 1].tolist() == [130, 225]


def test_the_place_farthest_inside_a_mask():
    mask = np.zeros((9, 20), dtype=bool)
    mask[2:7, 3:8] = True
    assert roomiest(mask, 2.9) == (4, 5) and roomiest(mask, 3.1) is None
    assert roomiest(np.ones((5, 5), bool), 2.5) == (2, 2)  # the image's border is one of the mask
    assert roomiest(np.zeros((5, 5), bool), 0) is None


def test_images_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="'b.png' has the runs \\['one'\\]; expected are \\['one', 'two'\\]"):
        prediction_maps([image(), image("b.png", runs=("one",))], NAMES, COLORS)
    wrong = image()
    wrong.predicted["two"] = np.zeros((3, 3), int)
    with pytest.raises(
        ValueError, match="two of 'a.png': the size is \\(3, 3\\); its label's is \\(30, 40\\)"
    ):
        error_maps([wrong], 3)
    with pytest.raises(ValueError, match="one image"):
        prediction_maps([], NAMES, COLORS)
