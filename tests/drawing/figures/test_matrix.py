"""Matrices of classes: the numbers in their panels, against loops over plain arrays."""

import numpy as np
import pytest

from regseg_d2.drawing.figures.matrix import MOST_NAMED, NUM_PAIRS, confusion_matrices, similarity_matrices

NAMES = ["road", "sky", "$x_1$ 50%"]


def panels_of(figure):
    return [axes for axes in figure.findobj(type(figure.axes[0])) if axes.images]


def symmetric(size, seed, low=-1.0):
    values = np.random.default_rng(seed).uniform(low, 1, (size, size))
    return (values + values.T) / 2


def test_matrices_of_all_runs_are_shown_on_one_scale():
    matrices = {"a": symmetric(3, 0, 0.2), "b": 5 * symmetric(3, 1, 0.2)}
    figure = similarity_matrices(matrices, NAMES, "dot product")
    panels = panels_of(figure)
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    everything = np.concatenate([m.ravel() for m in matrices.values()])
    for axes, matrix in zip(panels, matrices.values(), strict=True):
        shown = axes.images[0]
        assert shown.get_array().tolist() == matrix.tolist()
        assert (shown.norm.vmin, shown.norm.vmax) == (everything.min(), everything.max())
    assert [label.get_text() for label in panels[0].get_yticklabels()] == NAMES
    assert any(axes.get_ylabel() == "dot product" for axes in figure.axes)


def test_a_scale_with_negative_numbers_has_its_middle_at_zero():
    matrix = np.array([[1.0, -1.5], [-1.5, 0.5]])
    (axes,) = panels_of(similarity_matrices({"a": matrix}, NAMES[:2], "cosine"))
    norm = axes.images[0].norm
    assert (norm.vmin, norm.vmax) == (-1.5, 1.5)
    assert np.allclose(axes.images[0].cmap(norm(0.0))[:3], 1, atol=0.04)  # white


def test_without_its_diagonal_a_matrix_has_the_scale_of_the_others():
    matrix = np.array([[100.0, 2.0, 3.0], [2.0, 300.0, 4.0], [3.0, 4.0, 50.0]])
    before = matrix.copy()
    figure = similarity_matrices({"a": matrix}, NAMES, "dot product", diagonal=False)
    shown = panels_of(figure)[0].images[0]
    assert shown.get_array().mask.tolist() == np.eye(3, dtype=bool).tolist()
    assert (shown.norm.vmin, shown.norm.vmax) == (2, 4)
    assert (matrix == before).all()
    assert "The diagonal" in figure.get_supxlabel() and "without a pixel" not in figure.get_supxlabel()


def test_absent_classes_are_grey_and_a_note_says_so():
    matrix = symmetric(3, 0)
    matrix[1] = matrix[:, 1] = np.nan
    for diagonal in (True, False):
        figure = similarity_matrices({"a": matrix}, NAMES, "cosine", diagonal=diagonal)
        shown = panels_of(figure)[0].images[0]
        assert shown.get_array().mask[1].all() and not shown.get_array().mask[0, 2]
        assert "classes without a pixel" in figure.get_supxlabel()
    assert panels_of(similarity_matrices({"a": np.full((3, 3), np.nan)}, NAMES, "cosine"))


def test_confusions_are_percentages_of_the_true_class():
    counts = np.array([[90, 9, 1], [0, 0, 0], [1, 1, 198]])
    figure = confusion_matrices({"a": counts}, NAMES)
    (axes,) = panels_of(figure)
    shown = axes.images[0].get_array()
    for row in (0, 2):
        for column in range(3):
            assert shown[row, column] == pytest.approx(100 * counts[row, column] / sum(counts[row]))
    assert shown.mask[1].all()
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written == {(0, 0): "90", (0, 1): "9", (0, 2): "1", (2, 2): "99"}  # 0.5 % is not written
    norm = axes.images[0].norm
    assert (norm.vmin, norm.vmax, float(norm(25.0))) == (0, 100, 0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_of_many_classes_the_pairs_that_stand_out_are_named(runs):
    classes = 150
    names = [f"class {k}" for k in range(classes)]
    matrices = {f"run {i}": symmetric(classes, i) for i in range(runs)}
    figure = similarity_matrices(matrices, names, "cosine")
    panels = panels_of(figure)
    assert len(panels) == runs
    assert not any(label.get_text() in names for axes in panels for label in axes.get_yticklabels())
    (pairs,) = figure.subfigs[1].axes
    heading = "The 15 pairs of classes that are most similar"
    if runs == 1:
        assert figure.subfigs[1].get_suptitle() == heading and not figure.subfigs[1].legends
    else:
        (legend,) = figure.subfigs[1].legends
        assert legend.get_title().get_text() == f"{heading} in any run"
        assert [text.get_text() for text in legend.get_texts()] == list(matrices)
    best = sorted(
        (
            (max(m[a, b] for m in matrices.values()), a, b)
            for a in range(classes)
            for b in range(a + 1, classes)
        ),
        reverse=True,
    )[:NUM_PAIRS]
    assert [t.get_text() for t in pairs.get_yticklabels()] == [
        f"class {a} ({a}) – class {b} ({b})" for _, a, b in best
    ]
    for line, matrix in zip(pairs.lines, matrices.values(), strict=True):
        assert list(line.get_xdata()) == [matrix[a, b] for _, a, b in best]


def test_of_many_classes_the_most_frequent_confusions_are_named():
    classes = MOST_NAMED + 1
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.fill_diagonal(counts, 1000)
    counts[3, 5], counts[5, 3], counts[7] = 500, 250, 0
    names = [f"c{k}" for k in range(classes)]
    figure = confusion_matrices({"a": counts}, names)
    (pairs,) = figure.subfigs[1].axes
    labels = [label.get_text() for label in pairs.get_yticklabels()]
    assert labels[:2] == ["c3 (3) → c5 (5)", "c5 (5) → c3 (3)"] and len(labels) == NUM_PAIRS
    assert list(pairs.lines[0].get_xdata()[:2]) == [pytest.approx(100 / 3), 20]
    assert not any("(7) →" in label for label in labels)


def test_matrices_of_another_size_are_refused():
    with pytest.raises(ValueError, match="'a' is \\(2, 2\\); 3 names ask for \\(3, 3\\)"):
        similarity_matrices({"a": np.eye(2)}, NAMES, "cosine")
    with pytest.raises(ValueError, match="one run"):
        confusion_matrices({}, NAMES)
