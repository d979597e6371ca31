"""What holds for all figures: the same bytes, no label over another or over the edge, whatever the names."""

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from regseg_d2.drawing.figures.bars import class_scores
from regseg_d2.drawing.figures.curves import learning_curves
from regseg_d2.drawing.figures.distributions import (
    calibration_diagram,
    image_scores,
    intra_inter_ratios,
    score_distributions,
)
from regseg_d2.drawing.figures.heat_maps import PixelRelations, calibration_maps, relation_maps
from regseg_d2.drawing.figures.maps import ShownImage, error_maps, prediction_maps
from regseg_d2.drawing.figures.matrix import confusion_matrices, similarity_matrices
from regseg_d2.drawing.figures.scatter import projections
from regseg_d2.drawing.figures.style import figure_bytes, fix_layout
from tests.drawing.figures.test_texts import HOSTILE

RUNS = {
    1: ["a run"],
    2: ["deeplabv3_efficientnet_lite0", "deeplabv3_efficientnet_lite0_car"],
    3: HOSTILE[2:5],
}


class Case:
    """Random arrays of so many classes and runs."""

    def __init__(self, classes, runs):
        self.random = np.random.default_rng(classes)
        self.runs = RUNS[runs]
        self.names = [*HOSTILE, *(f"class number {k}" for k in range(classes))][-classes:]
        if classes <= len(HOSTILE):
            self.names = HOSTILE[:classes]
        self.colors = self.random.integers(0, 256, (classes, 3)).astype(np.uint8)

    def each(self, *shape, low=0.0, high=1.0):
        return {run: self.random.uniform(low, high, shape) for run in self.runs}

    def labels(self, *shape, low=0):
        return self.random.integers(low, len(self.names), shape)

    def regions(self, height=24, width=32, low=-1):
        return self.labels(height // 8, width // 8, low=low).repeat(8, 0).repeat(8, 1)

    def image(self, name):
        pixels = self.random.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        predicted = {run: self.regions(low=0) for run in self.runs}
        return ShownImage(name, pixels, self.regions(), predicted, dict.fromkeys(self.runs, 50.0))

    def relations(self, name):
        image = self.image(name)
        maps = self.each(3, 4, low=-1)
        return PixelRelations(name, image.pixels, image.label, (3, 5), maps, dict.fromkeys(maps, (8, 8)))

    def calibration_maps(self):
        image = self.image("x")
        sizes = dict.fromkeys(self.runs, (8, 8))
        terms = self.each(3, 4), self.each(3, 4)
        return calibration_maps(image.pixels, image.label, image.predicted, *terms, sizes, len(self.names))

    def rows(self):
        return [
            {"iteration": 20 * i, "loss_sem_seg": v, "CAR/x": -v}
            for i, v in enumerate(self.random.random(60))
        ]


FIGURES = {
    "similarity": lambda c: similarity_matrices(
        c.each(len(c.names), len(c.names), low=-1), c.names, "cosine"
    ),
    "confusion": lambda c: confusion_matrices(c.each(len(c.names), len(c.names), high=1e4), c.names),
    "projections": lambda c: projections(
        c.each(300, 2),
        c.labels(300),
        c.names,
        c.colors,
        predicted={run: c.labels(300) for run in c.runs},
    ),
    "scores": lambda c: score_distributions(
        {run: (np.linspace(-5, 15, 21), 1e4 * counts) for run, counts in c.each(3, len(c.names), 20).items()},
        c.names,
        [0, 1],
    ),
    "calibration": lambda c: calibration_diagram({run: 1e3 * v for run, v in c.each(3, 10).items()}),
    "ratios": lambda c: intra_inter_ratios(c.each(len(c.names)), c.names),
    "images": lambda c: image_scores(c.each(100, high=100)),
    "classes": lambda c: class_scores(c.each(3, len(c.names), high=99), c.names),
    "curves": lambda c: learning_curves({run: c.rows() for run in c.runs}, ["loss_sem_seg", "CAR/x"]),
    "predictions": lambda c: prediction_maps([c.image(name) for name in HOSTILE[3:6]], c.names, c.colors),
    "errors": lambda c: error_maps([c.image(name) for name in HOSTILE[6:9]], len(c.names)),
    "relations": lambda c: relation_maps([c.relations(name) for name in HOSTILE[9:12]]),
    "phi and psi": lambda c: c.calibration_maps(),
}


def labels_of(figure, monkeypatch):
    """Boxes in pixels of the texts that are drawn around the panels, those of legends included."""
    drawn = []
    draw = Text.draw
    with monkeypatch.context() as patched:
        patched.setattr(
            Text, "draw", lambda text, *args, **kwargs: (drawn.append(text), draw(text, *args, **kwargs))
        )
        figure.draw_without_rendering()
    inside = {id(text) for axes in figure.findobj(Axes) for text in axes.texts}
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn if id(text) not in inside]
    return [(text, box) for text, box in boxes if text.strip()]


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("classes", [11, 150])
@pytest.mark.parametrize("kind", FIGURES)
def test_no_label_lies_over_another_or_over_the_edge(kind, classes, runs, monkeypatch):
    figure = FIGURES[kind](Case(classes, runs))
    fix_layout(figure)
    boxes = labels_of(figure, monkeypatch)
    assert len(boxes) >= 4
    edge, near = 0.01 * figure.dpi, 0.01 * figure.dpi
    faults = [
        text
        for text, box in boxes
        if min(box.x0, box.y0, figure.bbox.width - box.x1, figure.bbox.height - box.y1) < -edge
    ]
    for (text, box), (other, its) in itertools.combinations(boxes, 2):
        width = min(box.x1, its.x1) - max(box.x0, its.x0)
        height = min(box.y1, its.y1) - max(box.y0, its.y0)
        if min(width, height) > near:
            faults.append((text, other, float(width), float(height)))
    assert faults == []


@pytest.mark.parametrize("kind", FIGURES)
def test_the_same_arrays_give_the_same_bytes(kind):
    first, again = (FIGURES[kind](Case(11, 3)) for _ in range(2))
    for file in ("svg", "png"):
        assert figure_bytes(first, file, 50) == figure_bytes(again, file, 50)
