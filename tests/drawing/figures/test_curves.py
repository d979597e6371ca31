"""Learning curves: what training recorded, against loops."""

import json
import math

import numpy as np
import pytest

from regseg_d2.drawing.figures.curves import SMOOTHED, curve_groups, curve_of, learning_curves, running_mean


def rows(count, seed=0):
    r = np.random.default_rng(seed)
    return [
        {"iteration": 20 * i + 19, "loss_sem_seg": 2 + r.random(), "lr": 0.1, "CAR/similarity": r.random()}
        for i in range(count)
    ]


def test_keys_are_grouped_by_what_they_are():
    runs = {
        "a": [{"iteration": 1, "lr": 0.1, "total_loss": 1, "loss_sem_seg": 1}],
        "b": [
            {"loss_car_intra": 1, "CAR/x": 2, "val/sem_seg/IoU-sign/symbol": 3, "loss_sem_seg": 1, "CAR/y": 1}
        ],
    }
    assert curve_groups(runs) == {
        "losses": ["total_loss", "loss_sem_seg", "loss_car_intra"],
        "CAR": ["CAR/x", "CAR/y"],
    }


def test_a_curve_is_what_was_recorded_last():
    recorded = [{"iteration": 5, "x": 1.0}, {"iteration": 9}, {"x": 3.0}, {"iteration": 7, "x": 2}]
    recorded += [{"iteration": 5, "x": 4.0}, {"iteration": 8, "x": "text"}, {"iteration": 11, "x": None}]
    iterations, values = curve_of(recorded, "x")
    assert iterations.tolist() == [5, 7] and values.tolist() == [4.0, 2.0]


@pytest.mark.parametrize("window", [3, 4, 7, 100])
def test_running_means_against_a_loop(window):
    values = np.random.default_rng(window).normal(size=40)
    values[[0, 7, 8, 9, 10, 11, 12, 13, 14]] = np.nan
    half = window // 2
    for i, mean in enumerate(running_mean(values, window)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        assert mean == pytest.approx(sum(near) / len(near) if near else math.nan, nan_ok=True, abs=1e-12)


def test_thin_lines_are_the_values_and_thick_ones_their_mean():
    runs = {"a": rows(100), "b": rows(200, 1)}
    figure = learning_curves(runs, ["loss_sem_seg", "CAR/similarity"])
    for axes, key in zip(figure.axes, ("loss_sem_seg", "CAR/similarity"), strict=True):
        assert axes.get_title().replace("\n", "") == key
        for number, recorded in enumerate(runs.values()):
            thin, thick = axes.lines[2 * number : 2 * number + 2]
            assert thin.get_xdata().tolist() == [row["iteration"] for row in recorded]
            assert thin.get_ydata().tolist() == [row[key] for row in recorded]
            assert thin.get_linewidth() < thick.get_linewidth()
            half = int(SMOOTHED * len(recorded)) // 2
            values = [row[key] for row in recorded]
            expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
            assert thick.get_ydata() == pytest.approx(expected)
    assert "5 %" in figure.get_supxlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_few_points_are_marked_and_not_smoothed_and_a_run_without_a_key_has_no_line():
    figure = learning_curves({"a": rows(4), "b": [{"iteration": 1}]}, ["lr"])
    first, second = figure.axes[0].lines
    assert len(first.get_xdata()) == 4 and first.get_marker() == "o" and len(second.get_xdata()) == 0
    assert figure.get_supxlabel() == ""


def test_numbers_that_are_not_finite_are_gaps():
    text = '{"iteration": 1, "x": NaN}\n{"iteration": 2, "x": 1.0}\n{"iteration": 3, "x": Infinity}'
    recorded = [json.loads(line) for line in text.split("\n")]
    line = learning_curves({"a": recorded}, ["x"], log=True).axes[0].lines[0]
    assert np.array_equal(line.get_ydata(), [np.nan, 1.0, np.nan], equal_nan=True)


def test_logarithmic_axes_have_plain_numbers():
    figure = learning_curves(
        {"a": [{"iteration": i, "x": 10.0 ** (i - 3)} for i in range(6)]}, ["x"], log=True
    )
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    figure.draw_without_rendering()
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert "0.1" in labels and not any("$" in label for label in labels)


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="one key"):
        learning_curves({"a": rows(3)}, [])
    with pytest.raises(ValueError, match="one run"):
        learning_curves({}, ["x"])
