"""Drawing of anchors, pixels and hard samples, and the contrast within a batch."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops.contrast_seg import (
    Mining,
    contrast_within,
    draw_anchors,
    draw_hardest,
    draw_pixels,
)
from tests.references.contrast_seg import anchor_quota, hardest, info_nce

K = 4


def random_bits(*shape, seed=0):
    return torch.randint(0, 2**32, shape, generator=torch.Generator().manual_seed(seed))


def make_labels(seed=0, num_images=3, num_pixels=60):
    generator = torch.Generator().manual_seed(seed)
    # Class 3 is rare, image 2 has no class 0, some pixels are void.
    labels = torch.multinomial(
        torch.tensor([0.3, 0.3, 0.25, 0.02, 0.13]), num_images * num_pixels, True, generator=generator
    ).view(num_images, num_pixels)
    labels[labels == 4] = -1
    labels[2][labels[2] == 0] = 1
    wrong = torch.rand(num_images, num_pixels, generator=generator) < 0.3
    return labels, wrong


def draw(labels, wrong, seed=0, max_views=10, max_anchors=1000, min_pixels=1):
    shape = labels.shape
    anchors = draw_anchors(
        labels,
        wrong,
        random_bits(*shape, seed=seed),
        random_bits(shape[0], K, seed=seed + 999),
        max_views,
        max_anchors,
        min_pixels,
    )
    return anchors.compacted()


@pytest.mark.parametrize(
    ("max_views", "max_anchors", "min_pixels"),
    [(10, 1000, 1), (5, 1000, 1), (100, 1000, 1), (10, 40, 1), (10, 1000, 5), (6, 2, 1), (1, 1000, 1)],
)
def test_anchors_are_members_without_repeats_and_fill_the_quota(max_views, max_anchors, min_pixels):
    labels, wrong = make_labels()
    anchors = draw(labels, wrong, 3, max_views, max_anchors, min_pixels)
    assert anchors.valid.all()
    assert len(set(anchors.pixels.tolist())) == len(anchors.pixels)
    assert torch.equal(labels.flatten()[anchors.pixels], anchors.classes)
    assert torch.equal(wrong.flatten()[anchors.pixels], anchors.hard)
    counts = [int((image == k).sum()) for image in labels for k in range(K)]
    quotas = anchor_quota(counts, max_views, max_anchors, min_pixels)
    groups = anchors.pixels // labels.shape[1] * K + anchors.classes
    assert torch.bincount(groups, minlength=len(counts)).tolist() == quotas
    assert groups.tolist() == sorted(groups.tolist())
    assert sum(quotas) > 0


def test_half_are_misclassified_and_either_kind_fills_up():
    labels = torch.zeros(4, 40, dtype=torch.long)
    wrong = torch.zeros(4, 40, dtype=torch.bool)
    for image, number in enumerate((20, 2, 38, 0)):
        wrong[image, :number] = True
    anchors = draw(labels, wrong, max_views=10)
    hard = torch.zeros(4, dtype=torch.long).index_add_(0, anchors.pixels // 40, anchors.hard.long())
    assert hard.tolist() == [5, 2, 8, 0]
    assert len(anchors.pixels) == 40


def test_the_odd_anchor_is_of_either_kind():
    """With a quota of 1 the published code never takes a misclassified pixel."""
    num_images = 2000
    labels = torch.zeros(num_images, 4, dtype=torch.long)
    wrong = torch.tensor([True, False, False, True]).expand(num_images, -1)
    anchors = draw(labels, wrong, max_views=1, max_anchors=10**6)
    assert len(anchors.pixels) == num_images
    assert 0.45 < anchors.hard.double().mean() < 0.55
    three = draw(labels, wrong, max_views=3, max_anchors=10**6)
    per_image = torch.zeros(num_images).index_add_(0, three.pixels // 4, three.hard.float())
    assert set(per_image.tolist()) == {1.0, 2.0}


def test_draws_are_uniform():
    """Each misclassified pixel with 4/8 by half the quota, each other one with 4/12."""
    labels = torch.zeros(3000, 20, dtype=torch.long)
    wrong = (torch.arange(20) < 8).expand(3000, -1)
    anchors = draw(labels, wrong, max_views=8, max_anchors=10**6)
    frequency = torch.bincount(anchors.pixels % 20, minlength=20) / 3000
    assert (frequency[:8] - 4 / 8).abs().max() < 0.04
    assert (frequency[8:] - 4 / 12).abs().max() < 0.04


def test_places_do_not_depend_on_data():
    """The same number on all processes, and nothing to wait for on a GPU."""
    labels, wrong = make_labels()
    bits, coins = random_bits(3, 60), random_bits(3, K)
    sizes = set()
    for image_labels in (labels, torch.full_like(labels, -1), torch.zeros_like(labels)):
        anchors = draw_anchors(image_labels, wrong, bits, coins, 10, 64)
        sizes.add(len(anchors.pixels))
        assert len(anchors.valid) == len(anchors.classes) == len(anchors.hard)
    assert sizes == {64}


def test_labels_that_are_no_class_give_nothing():
    labels = torch.tensor([[0, 9, -1, 1], [7, 7, 7, -1]])
    anchors = draw(labels, torch.zeros_like(labels, dtype=torch.bool))
    assert sorted(anchors.pixels.tolist()) == [0, 3]
    pixels, classes, valid = draw_pixels(labels, random_bits(2, 4), K, 2)
    assert sorted(pixels[valid].tolist()) == [0, 3]


def test_drawn_pixels_belong_to_their_class():
    """The published code stores pixels of other classes."""
    labels, _ = make_labels()
    pixels, classes, valid = draw_pixels(labels, random_bits(*labels.shape), K, 7)
    assert pixels.shape == classes.shape == valid.shape == (3 * K * 7,)
    assert torch.equal(labels.flatten()[pixels[valid]], classes[valid])
    assert len(set(pixels[valid].tolist())) == int(valid.sum())
    expected = [min(7, int((image == k).sum())) for image in labels for k in range(K)]
    assert valid.view(-1, 7).sum(dim=1).tolist() == expected
    images = torch.arange(3).repeat_interleave(K * 7)
    assert torch.equal((pixels // 60)[valid], images[valid])


def test_the_hardest_are_drawn_without_repeats_and_uniformly():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, 50, generator=generator).topk(50).values
    candidates = torch.arange(50) % 2 == 0
    scores[:, ~candidates] = -torch.inf
    # 25 candidates, of which the ceil(0.4 * 25) = 10 hardest are columns 0, 2, ... 18.
    columns, valid = draw_hardest(scores, torch.full((4000,), 25), 0.4, 4, random_bits(4000))
    assert columns.shape == (4000, 4)
    assert valid.all()
    assert set(columns.unique().tolist()) == set(range(0, 20, 2))
    assert all(len(set(row)) == 4 for row in columns.tolist())
    frequency = torch.bincount(columns.flatten(), minlength=20)[::2] / 4000
    assert (frequency - 0.4).abs().max() < 0.03


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(30, 0.1, 3), (31, 0.1, 4), (1, 0.1, 1), (0, 0.1, 0)]
)
def test_the_share_is_rounded_up(count, fraction, expected):
    scores = torch.full((1, 40), -torch.inf)
    scores[0, :count] = torch.arange(count).float()
    columns, valid = draw_hardest(scores, torch.tensor([count]), fraction, 100, random_bits(1))
    assert valid.sum() == expected
    assert sorted(columns[valid].tolist()) == list(range(count - expected, count))


def make_rows(seed=0, number=12):
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(number, 5, dtype=torch.float64, generator=generator), dim=1)
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3])[:number]
    return rows.requires_grad_(True), classes


@pytest.mark.parametrize("fraction", [None, 0.5, 1.0])
def test_contrast_within_follows_the_equation(fraction):
    rows, classes = make_rows()
    same = classes.unsqueeze(1) == classes
    positives = same & ~torch.eye(12, dtype=torch.bool)
    mining = None if fraction is None else Mining(fraction, 100, 100, random_bits(12))
    contrast = contrast_within(rows, rows, positives, ~same, 0.2, mining)
    expected, counts, similarities = [], [], []
    for i in range(12):
        chosen = [[rows[j] for j in mask[i].nonzero().flatten().tolist()] for mask in (positives, ~same)]
        if fraction is not None:
            chosen = [
                hardest(rows[i], samples, fraction, sign)
                for samples, sign in zip(chosen, (-1, 1), strict=True)
            ]
        loss = info_nce(rows[i], *chosen, 0.2)
        expected.append(rows.sum() * 0 if loss is None else loss)
        counts.append(len(chosen[0]))
        means = [sum((rows[i] * s).sum() for s in samples) / max(len(samples), 1) for samples in chosen]
        similarities.append([float(torch.as_tensor(m).detach()) for m in means])
    expected = torch.stack(expected)
    torch.testing.assert_close(contrast.losses, expected, rtol=1e-9, atol=1e-12)
    assert contrast.num_positives.tolist() == counts
    assert counts[9] == 0
    found = torch.stack([contrast.positive_similarity, contrast.negative_similarity], dim=1)
    torch.testing.assert_close(found, torch.tensor(similarities, dtype=torch.float64))
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    (ours,) = torch.autograd.grad((contrast.losses * weights).sum(), rows)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_contrast_within_gradcheck():
    rows, classes = make_rows(1)
    same = classes[:6].unsqueeze(1) == classes

    def total(anchors, samples):
        return contrast_within(anchors, samples, same, ~same, 0.3).losses

    other, _ = make_rows(2)
    assert torch.autograd.gradcheck(total, (rows[:6].detach().requires_grad_(True), other), atol=1e-7)


def test_anchors_without_positives_or_negatives_are_zero_and_finite():
    """The published code divides by zero without a positive."""
    rows, _ = make_rows()
    none, everything = torch.zeros(12, 12, dtype=torch.bool), torch.ones(12, 12, dtype=torch.bool)
    for positives, negatives in ((none, everything), (everything, none), (none, none)):
        for mining in (None, Mining(0.1, 3, 3, random_bits(12))):
            contrast = contrast_within(rows, rows, positives, negatives, 0.1, mining)
            (gradient,) = torch.autograd.grad(contrast.losses.sum(), rows)
            assert torch.equal(contrast.losses, torch.zeros(12, dtype=torch.float64))
            assert torch.equal(gradient, torch.zeros_like(rows))


def test_identical_and_opposite_rows_stay_finite_in_float32():
    rows = F.normalize(torch.randn(1, 8), dim=1).repeat(6, 1)
    rows[3:] *= -1
    rows.requires_grad_(True)
    classes = torch.tensor([0, 0, 1, 1, 0, 1])
    same = classes.unsqueeze(1) == classes
    contrast = contrast_within(rows, rows, same, ~same, 0.025)
    (gradient,) = torch.autograd.grad(contrast.losses.sum(), rows)
    assert torch.isfinite(contrast.losses).all()
    assert torch.isfinite(gradient).all()
    # An opposite positive and an identical negative: 2 / 0.025.
    assert contrast.losses.max() > 20
