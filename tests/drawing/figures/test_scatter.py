"""Projections: every point where it belongs, in the colour of its label, wrong ones marked."""

import numpy as np
import pytest

from regseg_d2.drawing.figures.scatter import projections
from regseg_d2.drawing.figures.style import figure_bytes

COLORS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [250, 250, 250]], dtype=np.uint8)
NAMES = ["road", "sky", "car", "tree"]


def points_of(axes):
    """Rows (x, y, r, g, b) of each collection: others, wrong others, right ones, wrong ones."""
    found = []
    for collection in axes.collections:
        places = np.asarray(collection.get_offsets())
        faces = collection.get_facecolors()
        if len(faces) == 1:
            faces = np.repeat(faces, len(places), axis=0)
        rows = (
            [(*p, *np.rint(255 * c[:3])) for p, c in zip(places.tolist(), faces[:, :3], strict=True)]
            if len(faces)
            else []
        )
        found.append(sorted(rows))
    return found


def case(points=40, classes=3, seed=0):
    r = np.random.default_rng(seed)
    labels = np.arange(points) % classes
    positions = {"a": r.normal(size=(points, 2)), "b": 3 * r.normal(size=(points, 2))}
    predicted = {run: np.where(r.random(points) < 0.3, (labels + 1) % classes, labels) for run in positions}
    return positions, labels, predicted


def test_points_have_the_colour_of_their_label_and_wrong_ones_are_apart():
    positions, labels, predicted = case()
    figure = projections(positions, labels, NAMES, COLORS, predicted=predicted)
    for axes, run in zip(figure.axes, positions, strict=True):
        others, wrong_others, right, wrong = points_of(axes)
        assert others == wrong_others == []
        for shown, errors in ((right, False), (wrong, True)):
            expected = []
            for place, label, prediction in zip(positions[run], labels, predicted[run], strict=True):
                if (prediction != label) == errors:
                    expected.append((*place, *COLORS[label]))
            assert shown == sorted(expected)
        share = 100 * np.mean([p != q for p, q in zip(predicted[run], labels, strict=True)])
        assert axes.get_title() == f"{run}\n{share:.1f} % wrong"


def test_all_runs_have_the_same_square_axes_around_all_points():
    positions, labels, predicted = case()
    figure = projections(positions, labels, NAMES, COLORS, predicted=predicted)
    everything = np.concatenate(list(positions.values()))
    for axes in figure.axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert right - left == pytest.approx(top - bottom)
        assert left < everything[:, 0].min() and right > everything[:, 0].max()
        assert bottom < everything[:, 1].min() and top > everything[:, 1].max()
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_numbers_stand_at_a_point_of_their_class_or_are_joined_to_it_and_the_legend_names_them():
    positions, labels, predicted = case(60)
    figure = projections(positions, labels, NAMES, COLORS, predicted=predicted)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["1 road", "2 sky", "3 car", "wrong"]
    for axes, run in zip(figure.axes, positions, strict=True):
        assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
        joined = [tuple(line.get_xydata()[0]) for line in axes.lines]
        for k, text in enumerate(axes.texts):
            own = positions[run][labels == k]
            middle = np.median(own, axis=0)
            nearest = min(own.tolist(), key=lambda p: (p[0] - middle[0]) ** 2 + (p[1] - middle[1]) ** 2)
            assert text.get_position() == tuple(nearest) or tuple(nearest) in joined


def test_numbers_of_classes_in_one_place_are_kept_apart():
    labels = np.arange(12)
    figure = projections(
        {"a": np.zeros((12, 2))}, labels, [str(k) for k in labels], np.zeros((12, 3), np.uint8)
    )
    places = np.array([text.get_position() for text in figure.axes[0].texts])
    gaps = np.hypot(*(places[:, None] - places[None]).T) + 1e9 * np.eye(12)
    diameter = 0.13 * 2 * np.ptp(figure.axes[0].get_xlim()) / 2 / (4.2 - 0.25)
    assert gaps.min() >= 0.99 * diameter


def test_of_many_classes_those_with_the_most_errors_are_coloured():
    labels = np.concatenate([np.repeat(np.arange(30), 10), np.full(30, 5)])  # the most points are of 5
    predicted = labels.copy()
    wrong = {7: 4, 29: 9, 0: 1}
    for k, count in wrong.items():
        predicted[np.flatnonzero(labels == k)[:count]] = 3
    names = [f"c{k}" for k in range(30)]
    positions = {"a": np.random.default_rng(0).normal(size=(330, 2))}
    colors = np.random.default_rng(1).integers(0, 255, (30, 3)).astype(np.uint8)
    figure = projections(positions, labels, names, colors, predicted={"a": predicted}, most_classes=2)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1 c7", "2 c29", "wrong"]
    assert "the 2 classes with the most wrong pixels" in figure.get_supxlabel()
    assert "the other 28" in figure.get_supxlabel().replace("\n", " ")
    others, wrong_others, right, crosses = (len(c.get_offsets()) for c in figure.axes[0].collections)
    assert (others, wrong_others, right, crosses) == (309, 1, 7, 13)


def test_region_centers_have_no_predictions():
    positions, labels, _ = case()
    figure = projections(positions, labels, NAMES, COLORS, method="PCA", what="region centers")
    assert figure.axes[0].get_xlabel() == "PCA 1" and figure.axes[0].get_title() == "a"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1 road", "2 sky", "3 car"]


def test_many_points_are_a_picture_in_an_svg():
    positions, labels, predicted = case(6000)
    drawing = figure_bytes(projections(positions, labels, NAMES, COLORS, predicted=predicted), "svg")
    assert drawing.count(b"<image") >= 2 and len(drawing) < 1_500_000


def test_points_that_are_not_those_of_the_labels_are_refused():
    with pytest.raises(ValueError, match="'a' are \\(4, 2\\); expected are \\(5, 2\\)"):
        projections({"a": np.zeros((4, 2))}, np.zeros(5, int), NAMES, COLORS)
    with pytest.raises(ValueError, match="one run"):
        projections({}, np.zeros(5, int), NAMES, COLORS)
    assert projections({"a": np.zeros((0, 2))}, np.zeros(0, int), NAMES, COLORS).axes
