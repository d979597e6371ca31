"""Metrics of a confusion matrix against plain loops, and against Detectron2's own."""

import math

import numpy as np
import pytest
from detectron2.evaluation import SemSegEvaluator

from regseg_d2.evaluation.metrics import compute_metrics, find_oddities


def reference(predicted, label, classes):
    """Per-class IoU and accuracy by looping over classes; void is any label outside the classes."""
    valid = (label >= 0) & (label < classes)
    predicted, label = predicted[valid], label[valid]
    iou, acc, iou_predicted = [], [], []
    for c in range(classes):
        inter = np.sum((predicted == c) & (label == c))
        union = np.sum((predicted == c) | (label == c))
        there = np.sum(label == c)
        iou.append(100 * inter / union if there else math.nan)
        acc.append(100 * inter / there if there else math.nan)
        iou_predicted.append(100 * inter / union if union else math.nan)
    share = [np.mean(label == c) for c in range(classes)]
    return {
        "iou": iou,
        "acc": acc,
        "miou": np.nanmean(iou),
        "miou_predicted": np.nanmean(iou_predicted),
        "macc": np.nanmean(acc),
        "pacc": 100 * np.mean(predicted == label),
        "fwiou": np.nansum(np.multiply(iou, share)),
    }


def confusion_of(predicted, label, classes):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(predicted.ravel(), label.ravel(), strict=True):
        if 0 <= t < classes:
            matrix[p, t] += 1
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 4, 255], size=(20, 30))  # class 3 and 5 are absent
    predicted = np.where(rng.random((20, 30)) < 0.5, label % 6, rng.integers(0, 4, (20, 30)))
    predicted = np.where(predicted == 255 % 6, 3, predicted)
    expected = reference(predicted, label, 6)
    found = compute_metrics(confusion_of(predicted, label, 6))
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12, err_msg=name)
    assert found.pixels.tolist() == [int(np.sum(label == c)) for c in range(6)]
    valid = label != 255
    assert found.predicted_pixels.tolist() == [int(np.sum(predicted[valid] == c)) for c in range(6)]


def test_two_conventions_by_hand():
    # Class 0: 3 of 4 right. Class 1: 2 right. Class 2: absent, predicted once. Class 3: neither.
    confusion = np.array([[3, 0, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    found = compute_metrics(confusion)
    assert found.miou == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert found.miou_predicted == pytest.approx(100 * (3 / 4 + 1 + 0) / 3)
    assert found.pacc == pytest.approx(100 * 5 / 6)
    assert found.fwiou == pytest.approx(100 * (3 / 4 * 4 / 6 + 2 / 6))
    np.testing.assert_allclose(found.iou, [75, 100, math.nan, math.nan])


def test_equal_to_detectron2_to_the_last_digit():
    rng = np.random.default_rng(5)
    confusion = rng.integers(0, 10**7, (7, 7))
    confusion[:, 3] = 0
    theirs = SemSegEvaluator.__new__(SemSegEvaluator)
    theirs._distributed, theirs._output_dir, theirs._compute_boundary_iou = False, None, False
    theirs._num_classes, theirs._class_names = 7, list("abcdefg")
    theirs._conf_matrix = np.pad(confusion, (0, 1))
    theirs._logger = type("Quiet", (), {"info": lambda *args: None})()
    expected = theirs.evaluate()["sem_seg"]
    found = compute_metrics(confusion).as_detectron2(list("abcdefg"))
    assert found.keys() - expected.keys() == {"mIoU_predicted"}
    for name, value in expected.items():
        assert found[name] == value or (math.isnan(value) and math.isnan(found[name])), name


def test_nothing_labelled_is_nan_and_said():
    found = compute_metrics(np.zeros((3, 3), dtype=np.int64))
    assert all(math.isnan(v) for v in (found.miou, found.miou_predicted, found.fwiou, found.macc, found.pacc))
    assert find_oddities(found, list("abc")) == ["No pixel has a label: every score is undefined."]


ODDITIES = {
    "nothing": ([[5, 1], [1, 5]], []),
    "absent": ([[5, 1, 0], [1, 5, 0], [0, 0, 0]], ["Not in the ground truth, and left out of mIoU: c."]),
    "never predicted": ([[5, 1, 2], [1, 5, 0], [0, 0, 0]], ["In the ground truth and never predicted: c."]),
    "single class": (
        [[5, 0], [1, 0]],
        ["Not in the ground truth, and left out of mIoU: b.", "Only one class is in the ground truth (a)"],
    ),
    "constant": (
        [[0, 0], [4, 5]],
        ["In the ground truth and never predicted: a.", "The prediction is constant: every pixel is b."],
    ),
}


@pytest.mark.parametrize("case", ODDITIES)
def test_oddities(case):
    confusion, expected = ODDITIES[case]
    found = find_oddities(compute_metrics(np.array(confusion)), list("abc")[: len(confusion)])
    assert len(found) == len(expected)
    for sentence, beginning in zip(found, expected, strict=True):
        assert sentence.startswith(beginning)
