"""Distributions: the curves' numbers, against loops over plain arrays."""

import math

import numpy as np
import pytest

from regseg_d2.drawing.figures.distributions import (
    calibration_diagram,
    image_scores,
    intra_inter_ratios,
    median_of,
    score_distributions,
)

NAMES = ["road", "sky"]


def test_score_distributions_are_densities_of_all_classes_and_of_chosen_ones():
    r = np.random.default_rng(0)
    edges = {"a": np.linspace(-4, 4, 9), "b": np.linspace(-8, 8, 9)}
    counts = {run: r.integers(0, 2000, (3, 2, 8)) for run in edges}
    figure = score_distributions({run: (edges[run], counts[run]) for run in edges}, NAMES, [1])
    panels = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in panels[0]] == ["a", "b"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["all classes", "sky"]
    for row, chosen in ((0, [0, 1]), (1, [1])):
        for axes, run in zip(panels[row], edges, strict=True):
            outlines = [patch for patch in axes.patches if not patch.get_fill()]
            for outcome, patch in enumerate(outlines):
                values = [sum(int(counts[run][outcome, k, b]) for k in chosen) for b in range(8)]
                width = edges[run][1] - edges[run][0]
                shown = patch.get_data()
                assert shown.edges.tolist() == edges[run].tolist()
                assert shown.values == pytest.approx([v / sum(values) / width for v in values])
                assert sum(shown.values) * width == pytest.approx(1)
                assert axes.lines[outcome].get_xdata()[0] == pytest.approx(
                    median_of(edges[run], np.array(values))
                )
            total = counts[run][0][chosen].sum()
            assert axes.get_legend().get_texts()[0].get_text() == f"TP {total / 1000:.3g} k"
    assert {axes.get_xlim() for axes in panels.flat} == {(-8.0, 8.0)}
    assert len({axes.get_ylim() for axes in panels[0]}) == 1


def test_a_run_without_errors_has_no_curve_for_them():
    counts = np.zeros((3, 2, 4), dtype=int)
    counts[0, 0, 1:3] = 5
    figure = score_distributions({"a": (np.arange(5.0), counts)}, NAMES, [1])
    assert [len(axes.patches) for axes in figure.axes] == [2, 0]
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["TP 0", "FP 0", "FN 0"]
    assert figure.axes[0].get_xlim() == (1.0, 3.0)
    with pytest.raises(ValueError, match="'a' are \\(3, 2, 4\\); expected are \\(3, 1, 4\\)"):
        score_distributions({"a": (np.arange(5.0), counts)}, ["road"])


@pytest.mark.parametrize(
    ("counts", "median"),
    [([0, 4, 0], 1.5), ([1, 1, 2], 2.0), ([2, 0, 2], 1.0), ([1, 0, 3], 2 + 1 / 3), ([0, 0, 0], math.nan)],
)
def test_median_of_a_histogram(counts, median):
    assert median_of(np.arange(4.0), np.array(counts)) == pytest.approx(median, nan_ok=True)


def test_calibration_is_the_share_of_right_pixels_over_the_mean_confidence():
    pixels = np.array([0, 50, 1000, 3950])
    confidence = np.array([0, 0.4, 0.6, 0.95]) * pixels
    right = np.array([0, 20, 500, 3900])
    figure = calibration_diagram({"a": (pixels, confidence, right), "b": (pixels, confidence, confidence)})
    above, below = figure.axes
    curve = above.lines[1]
    assert curve.get_xdata() == pytest.approx([40, 60, 95])
    assert curve.get_ydata() == pytest.approx([40, 50, 100 * 3900 / 3950])
    full, hollow = above.lines[2], above.lines[3]
    assert full.get_xdata() == pytest.approx([60, 95]) and hollow.get_xdata() == pytest.approx([40])
    assert hollow.get_markerfacecolor() == "white" != full.get_markerfacecolor()
    error = 100 * sum(abs(r - c) for r, c in zip(right, confidence, strict=True)) / 5000
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"a (ECE {error:.1f} %)",
        "b (ECE 0.0 %)",
    ]
    shares = below.patches[0].get_data()
    assert shares.values == pytest.approx([0, 1, 20, 79]) and shares.edges == pytest.approx(
        [0, 25, 50, 75, 100]
    )
    with pytest.raises(ValueError, match="one size"):
        calibration_diagram({"a": (pixels, confidence, right[:2])})
    assert "nan" in calibration_diagram({"a": (0 * pixels,) * 3}).legends[0].get_texts()[0].get_text()


@pytest.mark.parametrize("classes", [3, 40, 41, 150, 171])
def test_ratios_have_a_row_a_class_the_largest_of_the_first_run_on_top(classes):
    r = np.random.default_rng(classes)
    ratios = {"a": r.random(classes), "b": r.random(classes)}
    ratios["a"][1] = ratios["b"][1] = np.nan
    figure = intra_inter_ratios(ratios, [f"c{k}" for k in range(classes)])
    order = sorted(range(classes), key=lambda k: (math.isnan(ratios["a"][k]), -ratios["a"][k]))
    columns = 1 if classes <= 40 else 2 if classes <= 80 else 4
    assert len(figure.axes) == columns
    seen = []
    for axes in figure.axes:
        labels = [text.get_text() for text in axes.get_yticklabels()]
        here = [int(label[1:]) for label in labels]
        for line, values in zip(axes.lines, ratios.values(), strict=True):
            assert list(line.get_ydata()) == list(range(len(here)))
            assert np.array_equal(line.get_xdata(), values[here], equal_nan=True)
        (spans,) = axes.collections
        expected = [sorted((ratios["a"][k], ratios["b"][k])) for k in here if k != 1]
        assert [sorted(s[:, 0].tolist()) for s in spans.get_segments()] == expected
        assert [text.get_text() for text in axes.texts] == ["absent"] * (1 in here)
        seen += here
        assert axes.get_xlim() == figure.axes[0].get_xlim()
    assert seen == order and figure.axes[0].get_xlim()[0] == 0


def test_scores_of_images_are_cumulative():
    scores = {"a": np.array([50.0, 10.0, np.nan, 30.0, 20.0]), "b": np.array([np.nan])}
    figure = image_scores(scores)
    (line,) = figure.axes[0].lines
    assert line.get_xdata()[1:].tolist() == [10, 20, 30, 50]
    assert line.get_ydata()[1:].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "a (median 25.0, 4 images)",
        "b (median nan, 0 images)",
    ]


@pytest.mark.parametrize("draw", [calibration_diagram, image_scores])
def test_nothing_is_refused(draw):
    with pytest.raises(ValueError, match="one run"):
        draw({})
    with pytest.raises(ValueError, match="one run"):
        score_distributions({}, NAMES)
    with pytest.raises(ValueError, match="one run"):
        intra_inter_ratios({}, NAMES)
    with pytest.raises(ValueError, match="'a' are \\(3,\\); there are 2"):
        intra_inter_ratios({"a": np.zeros(3)}, NAMES)
