"""The parts of MDRL's equations that no module test reaches: blocks, ties, degenerate features."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops import mdrl as ops
from tests.references.mdrl import attention, voted_maps

K, N, Z = 5, 3, 6


def make_case(num_pixels=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, Z, num_pixels, generator=generator, dtype=dtype).requires_grad_(True)
    distributions = F.normalize(torch.randn(K, N, Z, generator=generator, dtype=dtype), dim=2)
    active = torch.tensor([True, True, False, True, True])
    distributions[2] = 0.0
    labels = torch.randint(0, K, (2, num_pixels), generator=generator)
    labels[labels == 2] = -1
    return features, distributions, active, labels


def compare(features, distributions, active, labels, temperature=0.5):
    scale = ops.inverse_norms(features)
    return ops.similarities(features, scale, distributions, active, labels, temperature)


def plain(features, distributions, active, labels, temperature=0.5):
    """The same in plain differentiable operations."""
    cosines = torch.einsum("knz,bzp->bknp", distributions, F.normalize(features, dim=1))
    best = cosines.amax(dim=2).masked_fill(~active.view(1, -1, 1), torch.finfo(features.dtype).min)
    index = labels.clamp(min=0)[:, None, None].expand(-1, 1, N, -1)
    return (
        best,
        cosines.gather(1, index)[:, 0],
        (cosines[:, active] / temperature).flatten(1, 2).logsumexp(dim=1),
    )


@pytest.mark.parametrize("num_pixels", [1, 7, 200])
@pytest.mark.parametrize("temperature", [0.02, 0.5, 3.0])
def test_similarities_and_their_gradients(num_pixels, temperature, monkeypatch):
    # 200 pixels are four blocks.
    monkeypatch.setitem(ops._BLOCK_NUMBERS, "cpu", 1)
    case = make_case(num_pixels)
    ours, theirs = compare(*case, temperature), plain(*case, temperature)
    generator = torch.Generator().manual_seed(1)
    for which in range(3):
        torch.testing.assert_close(ours[which], theirs[which], rtol=1e-9, atol=1e-12)
        weights = torch.randn(ours[which].shape, generator=generator, dtype=torch.float64)
        weights = weights.masked_fill(ours[which].detach() < -2, 0.0)
        gradients = [
            torch.autograd.grad((x[which] * weights).sum(), case[0], retain_graph=True)[0]
            for x in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
        assert gradients[0].abs().sum() > 0


def test_channels_last_and_single_precision(monkeypatch):
    monkeypatch.setitem(ops._BLOCK_NUMBERS, "cpu", 1)
    features, *rest = make_case(150, torch.float32)
    last = features.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(True)
    results = [compare(x, *rest) for x in (features, last)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    for x, result in zip((features, last), results, strict=True):
        result.log_total.sum().backward()
        assert x.grad.stride() == x.stride()
    torch.testing.assert_close(features.grad, last.grad)


def test_gradcheck():
    features, *rest = make_case()

    def losses(x):
        compared = compare(x, *rest)
        return (
            ops.local_losses(compared.best, rest[2]),
            ops.global_losses(compared.own, compared.log_total, 0.5) * (rest[2] >= 0),
        )

    assert torch.autograd.gradcheck(losses, (features,), eps=1e-6, atol=1e-7)


def test_equal_distributions_share_the_gradient():
    features, distributions, active, labels = make_case()
    distributions[:] = distributions[:, :1]
    result = compare(features, distributions, active, labels)
    (gradient,) = torch.autograd.grad(result.best[:, active].sum(), features)
    single = torch.einsum("kz,bzp->bkp", distributions[active, 0], F.normalize(features, dim=1))
    (expected,) = torch.autograd.grad(single.sum(), features)
    torch.testing.assert_close(gradient, expected)


def test_a_zero_feature_has_cosine_zero_and_no_gradient():
    features, *rest = make_case()
    features = features.detach().clone()
    features[:, :, 2] = 0.0
    features.requires_grad_(True)
    result = compare(features, *rest)
    assert (result.own[:, :, 2] == 0).all()
    (gradient,) = torch.autograd.grad(result.log_total.sum() + result.own.sum(), features)
    assert (gradient[:, :, 2] == 0).all()
    assert torch.isfinite(gradient).all()


def test_without_any_distribution_all_is_finite():
    features, distributions, active, labels = make_case()
    result = compare(features, distributions * 0, active & False, torch.full_like(labels, -1))
    total = (ops.local_losses(result.best, torch.full_like(labels, -1))).sum() + 0 * result.log_total.sum()
    (gradient,) = torch.autograd.grad(total, features)
    assert total.item() == 0.0
    assert torch.isfinite(gradient).all()


def test_temperature_has_a_range():
    with pytest.raises(ValueError, match="0.02"):
        compare(*make_case(), temperature=0.01)


def test_sums_of_assigned(monkeypatch):
    monkeypatch.setitem(ops._BLOCK_NUMBERS, "cpu", 1)
    features, _, _, _ = make_case(150)
    generator = torch.Generator().manual_seed(3)
    slots = torch.randint(0, 5, (2, 150), generator=generator)
    result = ops.sums_of_assigned(features.detach(), ops.inverse_norms(features), slots, 4)
    rows = F.normalize(features.detach(), dim=1).transpose(1, 2)
    expected = torch.stack([rows[slots == slot].sum(0) for slot in range(4)])
    torch.testing.assert_close(result, expected)


def test_seed_directions_are_fixed_distinct_unit_vectors():
    directions = ops.seed_directions(15, 512)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(15))
    cosines = directions @ directions.t() - torch.eye(15)
    assert cosines.abs().max() < 0.2
    state = torch.random.get_rng_state()
    assert torch.equal(ops.seed_directions(15, 512), directions)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seed_directions_by_hand():
    def mix(x):
        x = (x + 0x9E3779B9) % 2**32
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    for n, direction in enumerate(ops.seed_directions(2, 3)):
        values = torch.tensor([mix(mix(n) + z) / 2**32 - 0.5 for z in range(3)])
        torch.testing.assert_close(direction, values / values.norm())


def test_voting_and_fusion_are_the_concatenated_maps_through_a_convolution():
    _, distributions, active, _ = make_case()
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.randn(2, K, 2, 3, generator=generator, dtype=torch.float64).softmax(1)
    fusion = torch.randn(4, N * Z, generator=generator, dtype=torch.float64)
    result = ops.vote_and_fuse(probabilities, distributions, fusion)
    memory = [list(d) if a else None for d, a in zip(distributions, active, strict=True)]
    for b in range(2):
        for i in range(2):
            for j in range(3):
                maps = torch.cat(voted_maps(probabilities[b, :, i, j], memory))
                torch.testing.assert_close(result[b, :, i, j], fusion @ maps)


def test_aggregation_is_attention_within_an_image():
    generator = torch.Generator().manual_seed(5)
    query, key, value = torch.randn(3, 2, 4, 2, 3, generator=generator, dtype=torch.float64)
    result = ops.aggregate(query, key, value).flatten(2)
    for b in range(2):
        rows = [list(x[b].flatten(1).t()) for x in (query, key, value)]
        expected = torch.stack(attention(*rows), dim=1)
        torch.testing.assert_close(result[b], expected)


def test_first_largest():
    shares = torch.tensor([[[0.2, 0.5, 0.0], [0.7, 0.5, 0.0], [0.1, 0.0, 0.0]]])
    assert ops.first_largest(shares).tolist() == [[1, 0, 0]]
