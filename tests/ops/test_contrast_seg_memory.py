"""Contrast with memories against the equation as slow loops."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops import contrast_seg_memory, stored_contrast
from regseg_d2.ops.contrast_seg import Mining
from regseg_d2.ops.contrast_seg_memory import contrast_with_memories
from regseg_d2.ops.stored_contrast import Memory
from tests.references.contrast_seg import hardest, info_nce

K, C = 5, 6
SIZES = (7, 4)
CLASSES = torch.tensor([0, 2, 2, 4, 0, 3, 1])


def make_memories(seed=0, dtype=torch.float64, empty=()):
    """Two memories of different size; slots are filled from the front, class 3 has one sample."""
    generator = torch.Generator().manual_seed(seed)
    memories = []
    for index, size in enumerate(SIZES):
        rows = F.normalize(torch.randn(K, size, C, dtype=torch.float64, generator=generator), dim=2)
        counts = torch.randint(1, size + 1, (K,), generator=generator)
        counts[0] = size
        counts[3] = 1 - index
        counts[list(empty)] = 0
        filled = torch.arange(size) < counts.unsqueeze(1)
        memories.append(Memory((rows * filled.unsqueeze(2)).to(dtype), filled))
    return memories


def make_anchors(seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    anchors = F.normalize(torch.randn(len(CLASSES), C, dtype=torch.float64, generator=generator), dim=1)
    return anchors.to(dtype).requires_grad_(True)


def mining_of(fraction, number=100):
    return Mining(fraction, number, number, torch.arange(len(CLASSES)) * 12345)


def samples_of(memories, mine):
    """All filled rows, by whether ``mine(class)``."""
    return [
        memory.rows[k, t].double()
        for memory in memories
        for k in range(K)
        if mine(k)
        for t in range(memory.filled.shape[1])
        if memory.filled[k, t]
    ]


def reference(anchors, memories, temperature, fraction=None):
    losses, counts, similarities = [], [], []
    for x, y in zip(anchors, CLASSES.tolist(), strict=True):
        positives = samples_of(memories, lambda k, y=y: k == y)
        negatives = samples_of(memories, lambda k, y=y: k != y)
        if fraction is not None:
            positives, negatives = hardest(x, positives, fraction, -1), hardest(x, negatives, fraction, 1)
        loss = info_nce(x, positives, negatives, temperature)
        losses.append(x.sum() * 0 if loss is None else loss)
        counts.append(len(positives))
        means = [sum((x * s).sum() for s in part) / max(len(part), 1) for part in (positives, negatives)]
        similarities.append([float(torch.as_tensor(m).detach()) for m in means])
    return torch.stack(losses), counts, torch.tensor(similarities, dtype=torch.float64)


WEIGHTS = torch.arange(1.0, len(CLASSES) + 1, dtype=torch.float64)


def assert_like_reference(anchors, memories, temperature, fraction=None, rtol=1e-9):
    mining = None if fraction is None else mining_of(fraction)
    contrast = contrast_with_memories(anchors, CLASSES, memories, temperature, mining)
    expected, counts, similarities = reference(anchors.double(), memories, temperature, fraction)
    torch.testing.assert_close(contrast.losses.double(), expected, rtol=rtol, atol=rtol)
    assert contrast.num_positives.tolist() == counts
    found = torch.stack([contrast.positive_similarity, contrast.negative_similarity], dim=1)
    torch.testing.assert_close(found.double(), similarities, rtol=rtol, atol=rtol)
    (ours,) = torch.autograd.grad((contrast.losses * WEIGHTS.to(anchors.dtype)).sum(), anchors)
    (theirs,) = torch.autograd.grad((expected * WEIGHTS).sum(), anchors)
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=10 * rtol, atol=10 * rtol)
    assert theirs.abs().sum() > 0


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("fraction", [None, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_follow_the_equation(temperature, fraction, seed):
    assert_like_reference(make_anchors(seed), make_memories(seed + 7), temperature, fraction)


@pytest.mark.parametrize("fraction", [None, 0.4])
@pytest.mark.parametrize(("rows", "logits", "converted"), [(1, 1, 1), (10, 60, 20), (13, 200, 10**6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pieces_make_no_difference(monkeypatch, fraction, rows, logits, converted, dtype):
    monkeypatch.setattr(contrast_seg_memory, "_MAX_LOGITS", logits)
    monkeypatch.setattr(stored_contrast, "_CACHED_ROWS", rows)
    monkeypatch.setattr(stored_contrast, "_CONVERTED", converted)
    assert_like_reference(make_anchors(), make_memories(dtype=dtype), 0.1, fraction)


@pytest.mark.parametrize("fraction", [None, 0.4])
def test_float32_at_the_lowest_temperature(fraction):
    assert_like_reference(
        make_anchors(dtype=torch.float32), make_memories(dtype=torch.float32), 0.025, fraction, 2e-4
    )


@pytest.mark.parametrize("fraction", [None, 1.0])
def test_gradcheck(fraction):
    memories = make_memories()
    mining = None if fraction is None else mining_of(fraction)

    def losses(x):
        return contrast_with_memories(x, CLASSES, memories, 0.3, mining).losses

    assert torch.autograd.gradcheck(losses, (make_anchors(),), atol=1e-7)


@pytest.mark.parametrize("fraction", [None, 0.1])
def test_memories_may_change_before_the_backward_pass(fraction):
    anchors, memories = make_anchors(), make_memories()
    mining = None if fraction is None else mining_of(fraction)
    (expected,) = torch.autograd.grad(
        contrast_with_memories(anchors, CLASSES, memories, 0.1, mining).losses.sum(), anchors
    )
    losses = contrast_with_memories(anchors, CLASSES, memories, 0.1, mining).losses
    for memory in memories:
        memory.rows.fill_(3.0)
        memory.filled.fill_(False)
    (gradient,) = torch.autograd.grad(losses.sum(), anchors)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("fraction", [None, 0.1])
@pytest.mark.parametrize("empty", [range(K), [0, 2], [1, 2, 3, 4]])
def test_empty_memories_are_finite(fraction, empty):
    """Without a positive the loss is zero; so it is without a negative."""
    anchors, memories = make_anchors(), make_memories(empty=list(empty))
    mining = None if fraction is None else mining_of(fraction)
    contrast = contrast_with_memories(anchors, CLASSES, memories, 0.07, mining)
    (gradient,) = torch.autograd.grad(contrast.losses.sum(), anchors)
    assert torch.isfinite(contrast.losses).all()
    assert torch.isfinite(gradient).all()
    without = torch.tensor([y in empty for y in CLASSES.tolist()])
    assert (contrast.num_positives[without] == 0).all()
    assert (contrast.losses[without] == 0).all()
    if len(empty) >= K - 1:
        assert (contrast.losses == 0).all()
        assert (gradient == 0).all()
    else:
        assert (contrast.losses[~without] > 0).all()


@pytest.mark.parametrize("fraction", [None, 0.1])
def test_no_anchors(fraction):
    anchors = torch.zeros(0, C, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    mining = None if fraction is None else Mining(fraction, 3, 3, none)
    contrast = contrast_with_memories(anchors, none, make_memories(), 0.1, mining)
    assert contrast.losses.shape == (0,)
    assert torch.autograd.grad(contrast.losses.sum(), anchors)[0].shape == (0, C)


def test_drawn_semi_hard_samples_are_among_the_hardest():
    """The loss of a draw lies between those of the best and the worst draw, and draws differ."""
    anchors, memories = make_anchors(), make_memories()
    values = []
    for seed in range(20):
        mining = Mining(0.5, 1, 1, torch.full((len(CLASSES),), 7919 * seed))
        values.append(contrast_with_memories(anchors, CLASSES, memories, 0.2, mining).losses.detach())
    values = torch.stack(values)
    for index, (x, y) in enumerate(zip(anchors.detach(), CLASSES.tolist(), strict=True)):
        positives = hardest(x, samples_of(memories, lambda k, y=y: k == y), 0.5, -1)
        negatives = hardest(x, samples_of(memories, lambda k, y=y: k != y), 0.5, 1)
        possible = torch.stack([info_nce(x, [p], [n], 0.2) for p in positives for n in negatives])
        distances = (values[:, index].unsqueeze(1) - possible).abs().min(dim=1).values
        assert distances.max() < 1e-12
        assert len(values[:, index].unique()) > 1
