"""Maps of numbers over images: which numbers, where, on which scale."""

import numpy as np
import pytest

from regseg_d2.drawing.figures.heat_maps import PixelRelations, calibration_maps, class_borders, relation_maps
from regseg_d2.drawing.figures.scales import shared_scale

LABEL = np.array([[0] * 8 + [1] * 8] * 12)
PIXELS = np.zeros((12, 16, 3), dtype=np.uint8)


def relations(seed, low=0.0, runs=("one", "two")):
    r = np.random.default_rng(seed)
    maps = {run: r.uniform(low, 1, (3 + i, 4 + i)) for i, run in enumerate(runs)}
    sizes = {run: (4.0 - i, 4.0) for i, run in enumerate(runs)}
    return PixelRelations(f"image {seed}", PIXELS, LABEL, (5, 11), maps, sizes)


def test_relations_of_all_rows_and_runs_are_on_one_scale_where_their_cells_are():
    rows = [relations(0), relations(1)]
    figure = relation_maps(rows, "cosine")
    grid = np.array([axes for axes in figure.axes if axes.images]).reshape(2, 3)
    everything = np.concatenate([m.ravel() for row in rows for m in row.maps.values()])
    for line, row in zip(grid, rows, strict=True):
        assert line[0].get_ylabel() == row.name
        for axes, run in zip(line[1:], row.maps, strict=True):
            heat = axes.images[0]
            assert heat.get_array().tolist() == row.maps[run].tolist()
            assert (heat.norm.vmin, heat.norm.vmax) == (everything.min(), everything.max())
            (h, w), (height, width) = row.maps[run].shape, row.cell_sizes[run]
            assert heat.get_extent() == [-0.5, w * width - 0.5, h * height - 0.5, -0.5]
            assert axes.get_xlim() == (-0.5, 15.5) and axes.get_ylim() == (11.5, -0.5)
        for axes in line:
            assert {tuple(mark.get_xydata()[0]) for mark in axes.lines} == {(11, 5)}
    assert [axes.get_title() for axes in grid[0]] == ["image", "one", "two"]
    assert figure.axes[-1].get_ylabel() == "cosine"


def test_a_signed_scale_is_white_at_zero():
    scale = shared_scale([np.array([-0.2, 0.8]), np.array([np.nan, np.inf])])
    assert (scale.norm.vmin, scale.norm.vmax) == (-0.8, 0.8)
    assert np.allclose(scale.colors(scale.norm(0.0))[:3], 1, atol=0.04)
    assert (shared_scale([np.array([np.nan])]).norm.vmin, shared_scale([np.array([2.0])]).norm.vmax) == (0, 2)
    figure = relation_maps([relations(0, low=-0.5)])
    assert figure.axes[1].images[0].norm.vmin == -figure.axes[1].images[0].norm.vmax


def test_borders_are_where_classes_change():
    label = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    expected = [[False, True, False], [True, True, True], [False, False, False]]
    assert class_borders(label).tolist() == expected
    overlay = relation_maps([relations(0)]).axes[1].images[1].get_array()
    assert (overlay[..., 3] > 0).tolist() == class_borders(LABEL).tolist()


def test_calibration_terms_share_a_scale_from_zero_on():
    r = np.random.default_rng(0)
    label = LABEL.copy()
    label[0, 0] = 255
    predicted = {run: r.integers(0, 2, label.shape) for run in ("one", "two")}
    terms = [{run: r.uniform(0, scale, (3, 4)) for run in predicted} for scale in (1.1, 1.9)]
    terms[0]["one"][0, 0] = np.nan
    figure = calibration_maps(PIXELS, label, predicted, *terms, dict.fromkeys(predicted, (4, 4)), 2)
    grid = np.array([axes for axes in figure.axes if axes.images]).reshape(2, 3)
    highest = max(np.nanmax(v) for term in terms for v in term.values())
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["one", "two"]
    for line, run in zip(grid, predicted, strict=True):
        dark = (line[0].images[0].get_array() == [51, 51, 51]).all(axis=2)
        assert dark.tolist() == ((predicted[run] != label) & (label != 255)).tolist()
        for axes, term in zip(line[1:], terms, strict=True):
            heat = axes.images[0]
            assert np.array_equal(heat.get_array().filled(np.nan), term[run], equal_nan=True)
            assert (heat.norm.vmin, heat.norm.vmax) == (0, highest)
    assert [axes.get_title()[0] for axes in grid[0]] == ["w", "φ", "ψ"]
    assert "White" in figure.get_supxlabel() and "Grey" in figure.get_supxlabel()


def test_runs_that_differ_are_refused():
    with pytest.raises(
        ValueError, match="'image 1' has maps of \\['one'\\]; expected are \\['one', 'two'\\]"
    ):
        relation_maps([relations(0), relations(1, runs=("one",))])
    with pytest.raises(ValueError, match="one pixel"):
        relation_maps([])
    maps = {"one": np.zeros((3, 4))}
    with pytest.raises(ValueError, match="calibration maps of the runs \\['two'\\]"):
        calibration_maps(PIXELS, LABEL, {"one": LABEL}, maps, {"two": maps["one"]}, {"one": (4, 4)}, 2)
