"""Logits of pixels out of classified masks, against loops in float64."""

import math

import pytest
import torch

from regseg_d2.ops.mask_classification import SMALLEST_SCORE, dense_logits


def slow_scores(classes, masks):
    """MaskFormer's semantic inference, pixel by pixel."""
    number, queries, outputs = classes.shape
    scores = torch.zeros(number, outputs - 1, *masks.shape[-2:], dtype=torch.float64)
    for n in range(number):
        for q in range(queries):
            weights = [math.exp(value) for value in classes[n, q].double().tolist()]
            for k in range(outputs - 1):
                for y in range(masks.shape[2]):
                    for x in range(masks.shape[3]):
                        inside = 1.0 / (1.0 + math.exp(-float(masks[n, q, y, x])))
                        scores[n, k, y, x] += weights[k] / sum(weights) * inside
    return scores


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pixels_have_the_scores_of_semantic_inference(dtype):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    masks = 3 * torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    logits = dense_logits(classes, masks)
    expected = slow_scores(classes.detach(), masks)
    assert logits.shape == (2, 3, 3, 4)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not logits.requires_grad
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(logits.exp().double(), expected, rtol=0, atol=tolerance)
    normalized = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(logits.softmax(1).double(), normalized, rtol=0, atol=tolerance)


def test_a_pixel_that_no_mask_covers_has_finite_logits():
    logits = dense_logits(torch.zeros(1, 2, 4), torch.full((1, 2, 1, 1), -1e4))
    assert torch.equal(logits, torch.full((1, 3, 1, 1), SMALLEST_SCORE).log())


def test_autocast_does_not_round_it():
    classes, masks = torch.randn(1, 6, 4), torch.randn(1, 6, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = dense_logits(classes, masks)
    assert torch.equal(logits, dense_logits(classes, masks))
