"""Pixels that count as misclassified, of a network that makes no mistake at the points it predicts for."""

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers import RegularizerInput
from regseg_d2.regularizers.inputs import LabelSampling
from tests.helpers import small_batch, small_cfg
from tests.references.labels import labels_at_cells

IGNORE, K, SIDE = 255, 10, 256
LOGITS = "head:out"


def scene(number, seed):
    """Ellipses on class 0: the class at points ``rows`` x ``columns``, real numbers in [0, SIDE]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.rand(number, 4, generator=generator, dtype=torch.float64).tolist()

    def class_at(rows, columns):
        classes = torch.zeros(len(rows), len(columns), dtype=torch.long)
        for k, (y, x, height, width) in enumerate(shapes):
            down = (rows / SIDE - y) / (0.04 + 0.2 * height)
            right = (columns / SIDE - x) / (0.04 + 0.2 * width)
            classes[down[:, None] ** 2 + right[None] ** 2 < 1] = 1 + k % (K - 1)
        return classes

    return class_at


def centers(count):
    """Centers of ``count`` equal parts of a side."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * SIDE / count


def misclassified(targets, logits, size, sampling):
    given = RegularizerInput({LOGITS: logits}, targets, K, label_sampling=sampling)
    labels, predicted = given.labels_at(size), given.predictions(LOGITS, size).classes
    return ((labels != predicted) & (labels >= 0)).double().mean().item()


def logits_of(classes):
    return 9.0 * torch.nn.functional.one_hot(classes, K).movedim(-1, 1).double()


@pytest.mark.parametrize("number", [5, 10, 15])
def test_a_network_that_is_right_at_every_cells_center(number):
    """At stride 8: none with labels at the centers, 4 to 12 % with labels at the corners."""
    size = (SIDE // 8, SIDE // 8)
    scenes = [scene(number, seed) for seed in range(8)]
    targets = torch.stack([class_at(centers(SIDE), centers(SIDE)) for class_at in scenes])
    logits = logits_of(labels_at_cells(targets, size))
    share = {rule: misclassified(targets, logits, size, LabelSampling(rule)) for rule in ("center", "corner")}
    assert share["center"] == 0
    assert 0.04 < share["corner"] < 0.12
    # Where all pixels of a cell are of one class, the one at its center is.
    assert misclassified(targets, logits, size, LabelSampling("majority", 1.0)) == 0


@pytest.mark.parametrize("number", [5, 10, 15])
def test_logits_at_stride_4_and_features_at_stride_32(number):
    """The network is right at every point of stride 4."""
    scenes = [scene(number, seed) for seed in range(8)]
    targets = torch.stack([class_at(centers(SIDE), centers(SIDE)) for class_at in scenes])
    fine = centers(SIDE // 4)
    logits = logits_of(torch.stack([class_at(fine, fine) for class_at in scenes]))
    size = (SIDE // 32, SIDE // 32)
    share = {rule: misclassified(targets, logits, size, LabelSampling(rule)) for rule in ("center", "corner")}
    # What is left: a point of stride 32 lies between four of stride 4, which need not agree.
    assert share["center"] < 0.05
    assert share["corner"] > 0.15


@pytest.mark.parametrize(("stride", "feature_stride"), [(4, 32), (8, 8), (4, 8), (32, 8), (16, 64)])
def test_predictions_are_made_for_cell_centers(stride, feature_stride):
    """Logits that grow evenly over the image say where they were read."""
    rows, columns = centers(SIDE // stride)[:, None], centers(SIDE // stride)[None]
    logits = torch.stack([rows + 0 * columns, columns + 0 * rows])[None]
    cells = SIDE // feature_stride
    given = RegularizerInput({LOGITS: logits}, torch.zeros(1, SIDE, SIDE, dtype=torch.long), K)
    read = given.predictions(LOGITS, (cells, cells)).logits[0]
    # Nothing is known beyond the outermost logits.
    expected = centers(cells).clamp(stride / 2, SIDE - stride / 2)
    torch.testing.assert_close(read[0], expected[:, None].expand(cells, cells))
    torch.testing.assert_close(read[1], expected[None].expand(cells, cells))
    # The label is of the pixel that holds this point.
    pixels = torch.arange(SIDE)[None, :, None].expand(1, SIDE, SIDE)
    given = RegularizerInput({}, pixels, SIDE, ignore_index=-1)
    assert given.labels_at((cells, cells))[0, :, 0].tolist() == centers(cells).floor().long().tolist()


def test_labels_key_is_checked():
    for key, value in {"LABELS": "nearest", "LABEL_PURITY": 1.5}.items():
        with pytest.raises(ConfigError, match=f"MODEL.REGULARIZERS.{key} is"):
            build_model(small_cfg("FCN", ["CAR"], **{f"REGULARIZERS__{key}": value}))
    for rule in ("center", "corner", "majority"):
        model = build_model(small_cfg("FCN", ["CAR", "PNE", "RCH"], REGULARIZERS__LABELS=rule)).train()
        assert all(torch.isfinite(loss) for loss in model(small_batch()).values())
