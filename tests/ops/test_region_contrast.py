"""The contrast of region centers with stored ones, against Eq. 4 as slow loops."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops import region_contrast as ops
from regseg_d2.ops import stored_contrast
from tests.references.region_contrast import region_loss

K, S, C, T = 4, 5, 6, 0.2


def make_case(seed=0, dtype=torch.float64, empty=()):
    """Queries, classes, samples and which of them are filled; ``empty`` classes have no sample."""
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(7, C, generator=generator, dtype=torch.float64), dim=1)
    classes = torch.tensor([0, 3, 1, 1, 2, 0, 3])
    samples = F.normalize(torch.randn(K, S, C, generator=generator, dtype=torch.float64), dim=2)
    filled = torch.arange(S) < torch.tensor([S, 2, 3, 1]).unsqueeze(1)
    filled[list(empty)] = False
    samples = (samples * filled.unsqueeze(2)).to(dtype)
    return queries.requires_grad_(True), classes, samples, filled


def stored_of(samples, filled, without=None):
    return {
        k: [samples[k, s].double() for s in range(S) if filled[k, s] and (k, s) != without] for k in range(K)
    }


def expected_losses(queries, classes, samples, filled, temperature=T, own_slots=None):
    losses = []
    for index, (query, k) in enumerate(zip(queries, classes.tolist(), strict=True)):
        own = None if own_slots is None else (k, own_slots[index].item())
        loss = region_loss(query, k, stored_of(samples, filled, own), temperature)
        losses.append(0.0 * query.sum() if loss is None else loss)
    return torch.stack(losses)


def assert_like_reference(case, temperature=T, own_slots=None, rtol=1e-10):
    queries, *rest = case
    ours = ops.region_contrast(queries, *rest, temperature, own_slots).losses
    theirs = expected_losses(*case, temperature, own_slots)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12)
    # Different weights, so that a gradient in the wrong row cannot hide.
    weights = torch.linspace(0.5, 2.0, len(ours), dtype=ours.dtype)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), queries)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), queries)
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=1e-12)
    assert expected.abs().sum() > 0
    return ours


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_losses_and_gradients_follow_the_equation(temperature, dtype):
    assert_like_reference(make_case(dtype=dtype), temperature)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 2**11])
def test_pieces_of_the_bank_change_nothing(monkeypatch, dtype, rows):
    monkeypatch.setattr(stored_contrast, "_CACHED_ROWS", rows)
    assert_like_reference(make_case(seed=1, dtype=dtype))


def test_a_stored_region_is_not_its_own_positive():
    queries, classes, samples, filled = make_case(seed=2)
    own_slots = torch.tensor([4, 0, 1, 0, 2, 0, 4])
    losses = assert_like_reference((queries, classes, samples, filled), own_slots=own_slots)
    result = ops.region_contrast(queries, classes, samples, filled, T, own_slots)
    # Class 3 has one sample, which is the second query's own; slot 4 is not filled for the last.
    assert result.num_positives.tolist() == [4, 0, 1, 1, 2, 4, 1]
    assert losses[1].item() == 0.0


def test_gradcheck():
    queries, *rest = make_case(seed=3)
    assert torch.autograd.gradcheck(lambda q: ops.region_contrast(q, *rest, T).losses, (queries,))


def test_samples_may_be_overwritten_before_the_backward_pass():
    queries, classes, samples, filled = make_case(dtype=torch.float64)
    losses = ops.region_contrast(queries, classes, samples, filled, T).losses
    (expected,) = torch.autograd.grad(expected_losses(queries, classes, samples, filled).sum(), queries)
    samples.zero_()
    filled.zero_()
    (gradient,) = torch.autograd.grad(losses.sum(), queries)
    torch.testing.assert_close(gradient, expected)


def test_without_a_positive_the_loss_is_zero_and_attached():
    queries, *rest = make_case(empty=[1])
    result = ops.region_contrast(queries, *rest, T)
    assert result.num_positives.tolist() == [S, 1, 0, 0, 3, S, 1]
    assert result.losses[2:4].tolist() == [0.0, 0.0]
    assert result.losses[[0, 1, 4, 5, 6]].min() > 0
    (gradient,) = torch.autograd.grad(result.losses[2:4].sum(), queries)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_without_a_negative_the_loss_is_zero():
    queries, *rest = make_case(empty=[0, 1, 2])
    result = ops.region_contrast(queries, *rest, T)
    assert result.num_positives.tolist() == [0, 1, 0, 0, 0, 0, 1]
    (gradient,) = torch.autograd.grad(result.losses.sum(), queries)
    assert result.losses.tolist() == [0.0] * 7
    assert gradient.abs().max() == 0
    assert result.negative_similarity[[1, 6]].tolist() == [0.0, 0.0]


def test_an_empty_bank_and_no_region_at_all():
    queries, *rest = make_case(empty=range(K))
    result = ops.region_contrast(queries, *rest, T)
    assert result.losses.tolist() == [0.0] * 7
    (gradient,) = torch.autograd.grad(result.losses.sum(), queries)
    assert gradient.abs().max() == 0
    queries, classes, samples, filled = make_case()
    losses = ops.region_contrast(queries[:0], classes[:0], samples, filled, T).losses
    assert losses.shape == (0,)
    assert torch.equal(torch.autograd.grad(losses.sum(), queries)[0], torch.zeros_like(queries))


@pytest.mark.parametrize("temperature", [stored_contrast.MIN_TEMPERATURE, 1e3])
def test_extreme_temperatures_stay_finite_in_single_precision(temperature):
    queries, *rest = make_case(dtype=torch.float32)
    queries = queries.detach().float().requires_grad_(True)
    losses = ops.region_contrast(queries, *rest, temperature).losses
    assert torch.isfinite(losses).all()
    assert torch.isfinite(torch.autograd.grad(losses.sum(), queries)[0]).all()
    assert losses.max() > 0


@pytest.mark.parametrize("own", [False, True])
def test_similarities_are_means_over_positives_and_negatives(own):
    queries, classes, samples, filled = make_case(seed=4)
    own_slots = torch.zeros(7, dtype=torch.long) if own else None
    result = ops.region_contrast(queries, classes, samples, filled, T, own_slots)
    assert not result.positive_similarity.requires_grad
    assert not result.negative_similarity.requires_grad
    for index, k in enumerate(classes.tolist()):
        stored = stored_of(samples, filled, (k, 0) if own else None)
        for values, similarity in (
            (stored[k], result.positive_similarity),
            ([row for other in stored if other != k for row in stored[other]], result.negative_similarity),
        ):
            expected = sum((queries[index] @ row).item() for row in values) / max(len(values), 1)
            assert similarity[index].item() == pytest.approx(expected, abs=1e-12)


def test_dynamic_weights_by_hand():
    labels = torch.tensor([[[0, 1, 1, -1]]])
    predictions = torch.tensor([[[0, 0, 1, 0]]])
    confidence = torch.tensor([[[0.75, 0.9, 1.0, 0.5]]])
    weights = ops.dynamic_weights(labels, predictions, confidence)
    assert weights[0, 0, :3].tolist() == [0.25, 1.0, 0.0]


def test_unit_centers_are_finite_where_there_is_none():
    centers = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]]], requires_grad=True)
    unit, present = ops.unit_centers(centers)
    torch.testing.assert_close(unit, torch.tensor([[[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]]))
    assert present.tolist() == [[True, False, True]]
    (gradient,) = torch.autograd.grad(unit[:, :2].sum(), centers)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 1].tolist() == [0.0, 0.0]
    # Orthogonal to the center: (I - u u^T) (1, 1) / 5.
    torch.testing.assert_close(gradient[0, 0], torch.tensor([0.4 * 0.8, -0.4 * 0.6]) / 10)
