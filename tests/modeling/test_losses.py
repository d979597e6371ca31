"""Cross entropy and OHEM against slow float64 loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.losses import SegmentationLoss
from tests.helpers import small_cfg

K, IGNORE = 4, 255


def slow_loss(logits, targets, weights=None, threshold=None, min_kept=0):
    """Weighted mean of -log p over valid pixels, or over the hard ones."""
    pixels = []
    for n in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            for j in range(targets.shape[2]):
                y = int(targets[n, i, j])
                if y != IGNORE:
                    z = logits[n, :, i, j]
                    pixels.append((torch.logsumexp(z, 0) - z[y], y))
    if threshold is not None:
        ranked = sorted(pixels, key=lambda pixel: -pixel[0].item())
        hard = [pixel for pixel in ranked if math.exp(-pixel[0].item()) < threshold]
        pixels = ranked[: max(len(hard), min_kept)]
    weights = weights or [1.0] * K
    return sum(weights[y] * nll for nll, y in pixels) / sum(weights[y] for _, y in pixels)


def example():
    logits = 2 * torch.randn(2, K, 5, 6, dtype=torch.float64)
    targets = torch.randint(0, K, (2, 5, 6))
    targets[0, :2] = IGNORE
    return logits.requires_grad_(True), targets


WEIGHTS = [1.0, 3.0, 0.0, 0.5]
CASES = {
    "plain": ({}, {}),
    "weighted": ({"class_weights": WEIGHTS}, {"weights": WEIGHTS}),
    "ohem_threshold": (
        {"loss_type": "ohem", "ohem_threshold": 0.3, "ohem_min_kept": 1},
        {"threshold": 0.3, "min_kept": 1},
    ),
    # The example has two images: 2 x 10 of all their pixels.
    "ohem_min_kept": (
        {"loss_type": "ohem", "ohem_threshold": 0.001, "ohem_min_kept": 10},
        {"threshold": 0.001, "min_kept": 20},
    ),
    "ohem_min_kept_of_a_process": (
        {"loss_type": "ohem", "ohem_threshold": 0.001, "ohem_min_kept": 10, "ohem_min_kept_per": "process"},
        {"threshold": 0.001, "min_kept": 10},
    ),
    "ohem_more_than_there_are": (
        {"loss_type": "ohem", "ohem_min_kept": 1000},
        {"threshold": 0.7, "min_kept": 1000},
    ),
    "ohem_weighted": (
        {"loss_type": "ohem", "ohem_min_kept": 1, "class_weights": WEIGHTS},
        {"threshold": 0.7, "min_kept": 1, "weights": WEIGHTS},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case):
    options, reference_options = CASES[case]
    logits, targets = example()
    loss = SegmentationLoss(num_classes=K, ignore_value=IGNORE, **options)(logits, targets)
    expected = slow_loss(logits, targets, **reference_options)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(3, 2), (5, 6), (7, 9)])
def test_logits_of_another_size_are_brought_to_the_labels(case, size):
    options, reference_options = CASES[case]
    _, targets = example()
    logits = torch.randn(2, K, *size, dtype=torch.float64, requires_grad=True)
    loss = SegmentationLoss(num_classes=K, ignore_value=IGNORE, **options)(logits, targets)
    full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    expected = slow_loss(full, targets, **reference_options)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_void_is_an_attached_zero(case, dtype):
    logits = torch.randn(1, K, 3, 3, dtype=dtype, requires_grad=True)
    loss = SegmentationLoss(num_classes=K, ignore_value=IGNORE, **CASES[case][0])(
        logits, torch.full((1, 3, 3), IGNORE)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_computed_in_float32():
    logits, targets = example()
    half = logits.detach().bfloat16()
    module = SegmentationLoss(num_classes=K, ignore_value=IGNORE)
    assert module(half, targets).dtype == torch.float32
    torch.testing.assert_close(module(half, targets), module(half.float(), targets))


@pytest.mark.parametrize("num_images", [1, 3])
def test_the_hardest_of_all_images_together_are_kept(num_images):
    # The first image has the hardest pixels, twice as many as there are for each image.
    logits = torch.zeros(num_images, K, 4, 5, dtype=torch.float64)
    logits[1:, 0] = 3.0
    logits[0, 0] = -torch.linspace(0, 1, 20, dtype=torch.float64).view(4, 5)
    logits.requires_grad_(True)
    targets = torch.zeros(num_images, 4, 5, dtype=torch.long)
    loss = SegmentationLoss(
        num_classes=K, ignore_value=IGNORE, loss_type="ohem", ohem_threshold=0.01, ohem_min_kept=5
    )(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    taking_part = (gradient != 0).any(dim=1).flatten(1).sum(dim=1).tolist()
    assert taking_part == [5 * num_images] + [0] * (num_images - 1)


def test_the_keys_of_ohem_reach_the_heads_loss():
    cfg = small_cfg()
    keys = {"LOSS_TYPE": "ohem", "OHEM_MIN_KEPT": 7, "OHEM_THRESHOLD": 0.5}
    cfg.MODEL.SEM_SEG_HEAD.update(keys)
    loss = build_model(cfg).sem_seg_head.loss
    assert (loss.loss_type, loss.ohem_min_kept, loss.ohem_threshold) == ("ohem", 7, 0.5)
    assert loss.ohem_min_kept_per == "image"
    cfg.MODEL.SEM_SEG_HEAD.OHEM_MIN_KEPT_PER = "process"
    assert build_model(cfg).sem_seg_head.loss.ohem_min_kept_per == "process"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "expected none or 4"),
        ({"class_weights": [1.0, 2.0, -1.0, 1.0]}, ">= 0"),
        ({"loss_type": "dice"}, "dice"),
        ({"ohem_threshold": 0.0}, "OHEM_THRESHOLD"),
        ({"ohem_min_kept_per": "class"}, "OHEM_MIN_KEPT_PER is 'class'; expected one of .*'process'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationLoss(num_classes=K, ignore_value=IGNORE, **options)
