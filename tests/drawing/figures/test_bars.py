"""Bars of classes: means and intervals over seeds, against the formula in plain Python."""

import math
import statistics

import numpy as np
import pytest

from regseg_d2.drawing.figures.bars import class_scores, mean_and_interval

# Two-sided 95 % points of Student's t, from a table, by the number of values.
T = {2: 12.7062, 3: 4.30265, 5: 2.77645}


def interval(values):
    return T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("classes", [11, 150])
def test_bars_are_means_over_seeds_with_their_intervals(classes):
    r = np.random.default_rng(0)
    scores = {"a": r.uniform(10, 90, (5, classes)), "b": r.uniform(10, 90, (3, classes))}
    scores["a"][:, 2] = scores["b"][:, 2] = np.nan
    figure = class_scores(scores, [f"c{k}" for k in range(classes)])
    means = {run: [statistics.fmean(v[:, k]) for k in range(classes)] for run, v in scores.items()}
    order = sorted(range(classes), key=lambda k: (math.isnan(means["a"][k]), -means["a"][k]))
    seen = []
    for axes in figure.axes:
        here = [int(text.get_text()[1:]) for text in axes.get_yticklabels()]
        seen += here
        bars = [container for container in axes.containers if hasattr(container, "patches")]
        errors = [container for container in axes.containers if hasattr(container, "has_xerr")]
        for run, drawn, error, seeds in zip(scores, bars, errors, axes.lines, strict=True):
            present = [k for k in here if k != 2]
            widths = [patch.get_width() for patch in drawn.patches]
            assert widths == pytest.approx([0 if k == 2 else means[run][k] for k in here])
            ends = error.lines[2][0].get_segments()
            for k, ((low, y), (high, _)) in zip(present, ends, strict=True):
                half = interval(scores[run][:, k].tolist())
                assert (low, high) == pytest.approx((means[run][k] - half, means[run][k] + half), rel=1e-3)
                assert abs(y - here.index(k)) < 0.4
            shown = np.reshape(seeds.get_xdata(), (len(scores[run]), len(here)))
            assert np.array_equal(shown, scores[run][:, here], equal_nan=True)
        assert [text.get_text() for text in axes.texts] == ["absent"] * (2 in here)
    assert seen == order
    expected = [
        f"{run} (mean {statistics.fmean(m for m in means[run] if not math.isnan(m)):.1f}, {len(v)} seeds)"
        for run, v in scores.items()
    ]
    assert [text.get_text().replace("\n", "") for text in figure.legends[0].get_texts()] == expected


def test_one_seed_has_no_interval():
    figure = class_scores({"a": np.array([[50.0, 60.0]])}, ["x", "y"], "boundary IoU (%)")
    (axes,) = figure.axes
    assert not axes.lines and len(axes.containers) == 1
    assert figure.legends[0].get_texts()[0].get_text() == "a (mean 55.0)"
    assert axes.get_xlabel() == "boundary IoU (%)"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["y", "x"]


def test_intervals_leave_out_seeds_without_a_value():
    values = np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    mean, half = mean_and_interval(values)
    assert mean == pytest.approx([2, 5, math.nan], nan_ok=True)
    assert half == pytest.approx([interval([1.0, 3.0]), math.nan, math.nan], nan_ok=True, rel=1e-4)


def test_scores_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="'a' are \\(2,\\); there are 2"):
        class_scores({"a": np.zeros(2)}, ["x", "y"])
