"""Pixel sets, class means, calibration terms and metric loss of RCH, against loops and by hand."""

import math

import pytest
import torch

from regseg_d2.ops import rch as ops

VOID = -1


def test_a_wrong_pixel_is_missed_by_its_class_and_taken_by_another():
    labels = torch.tensor([[0, 0, 1, 2, VOID, 1]])
    predicted = torch.tensor([[0, 1, 1, 0, 1, 2]])
    sets = ops.decouple(labels, predicted)
    assert sets.true_positive.tolist() == [[0, VOID, 1, VOID, VOID, VOID]]
    assert sets.false_negative.tolist() == [[VOID, 0, VOID, 2, VOID, 1]]
    assert sets.false_positive.tolist() == [[VOID, 1, VOID, 0, VOID, 2]]
    counts = ops.class_counts(ops.PixelSets(*(torch.cat([s, s[:, [3] * 6]]) for s in sets)), 4)
    assert counts[:, 0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    # The second image is its fourth pixel, six times.
    assert counts[:, 1].tolist() == [[0, 0, 0, 0], [0, 0, 6, 0], [6, 0, 0, 0]]


def test_membership_and_own_values():
    members = ops.membership(torch.tensor([[5, VOID, 2, 5]]), torch.tensor([2, 5]), torch.float64)
    assert members.tolist() == [[[0, 0, 1, 0], [1, 0, 0, 1]]]
    values = torch.arange(8.0, dtype=torch.float64).view(1, 2, 4)
    assert ops.own_values(values, members).tolist() == [[4, 0, 2, 7]]


def make_embeddings(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    members = (torch.rand(2, 4, 5, generator=generator) < 0.4).double()
    return x.requires_grad_(True), members


def test_unit_class_sums_are_sums_of_normalised_pixels():
    x, members = make_embeddings()
    sums, inverse_norms = ops.unit_class_sums(x, members)
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    for n in range(2):
        for p in range(5):
            assert inverse_norms[n, p].item() == pytest.approx(1 / x[n, :, p].norm().item())
            for k in range(4):
                if members[n, k, p]:
                    expected[n, k] += (x[n, :, p] / x[n, :, p].norm()).detach()
    torch.testing.assert_close(sums.detach(), expected)
    assert expected.abs().sum() > 1


def test_gradients_of_the_unit_class_sums_and_of_the_lengths():
    x, members = make_embeddings()
    assert torch.autograd.gradcheck(lambda y: ops.unit_class_sums(y, members), (x,))


def test_a_pixel_without_length_has_neither_direction_nor_gradient():
    x, members = make_embeddings()
    x = torch.where(torch.arange(5) == 2, 0.0, x.detach()).requires_grad_(True)
    members[:, 0] = 1
    sums, inverse_norms = ops.unit_class_sums(x, members)
    assert (inverse_norms[:, 2] == 0).all()
    (sums.square().sum() + ops.cosines(x, inverse_norms, torch.ones(2, 1, 3).double()).sum()).backward()
    assert (x.grad[:, :, 2] == 0).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def test_no_class_at_all():
    x, members = make_embeddings()
    sums, _ = ops.unit_class_sums(x, members[:, :0])
    assert sums.shape == (2, 0, 3)
    sums.sum().backward()
    assert (x.grad == 0).all()


def test_calibration_terms():
    cosine = torch.tensor([[-1.0, 0.5, 1.0]])
    has_fn, has_fp = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    phi, psi = ops.calibration_terms(cosine, cosine, has_fn, has_fp)
    assert phi.tolist() == [[2.0, 0.5, 0.0]]
    assert psi.tolist() == [[0.0, 1.5, 2.0]]
    phi, psi = ops.calibration_terms(None, None, has_fn, has_fp)
    assert (phi, psi) == (0, 0)


def test_metric_loss_by_hand():
    cosines = torch.tensor([[[0.5, 0.2], [-0.5, 0.4], [0.9, 0.9]]])  # one image, three classes, two pixels
    known = torch.tensor([True, True, False])
    phi, psi = torch.tensor([[0.8, 0.0]]), torch.tensor([[0.0, 1.2]])
    losses = ops.metric_losses(
        cosines, known, torch.tensor([[0, 1]]), phi, psi, torch.tensor([[0.25, 0.5]]), 0.5, 0.7
    )

    def term(own, other):
        return math.log(1 + math.exp(other - own))

    first = term(1.0 - 0.7 * 0.75 * 0.8, -1.0) + term(1.0, -1.0)
    second = term(0.8, 0.4) + term(0.8 - 0.7 * 0.5 * 1.2, 0.4)
    torch.testing.assert_close(losses, torch.tensor([[first, second]]))


def test_pixels_without_a_prototype_or_a_label_have_no_loss():
    cosines = torch.rand(1, 3, 3, requires_grad=True)
    known = torch.tensor([True, False, True])
    zero = torch.zeros(())
    losses = ops.metric_losses(
        cosines, known, torch.tensor([[1, VOID, 0]]), zero, zero, torch.rand(1, 3), 0.5
    )
    assert losses[0, :2].tolist() == [0, 0]
    assert losses[0, 2] > 0
    losses.sum().backward()
    assert (cosines.grad[0, :, :2] == 0).all()
    assert (cosines.grad[0, 1] == 0).all()


@pytest.mark.parametrize("known", [[False, False], [True, False]])
def test_without_two_prototypes_the_loss_is_zero(known):
    cosines = torch.rand(1, 2, 2, requires_grad=True)
    zero = torch.zeros(())
    losses = ops.metric_losses(
        cosines, torch.tensor(known), torch.tensor([[0, 1]]), zero, zero, torch.rand(1, 2), 0.5
    )
    assert losses.tolist() == [[0, 0]]
    losses.sum().backward()
    assert (cosines.grad == 0).all()


def test_small_temperatures_stay_finite():
    cosines = torch.tensor([[[-1.0], [1.0]]], requires_grad=True)
    zero = torch.zeros(())
    losses = ops.metric_losses(
        cosines, torch.tensor([True, True]), torch.tensor([[0]]), zero, zero, torch.zeros(1, 1), 1e-3
    )
    torch.testing.assert_close(losses, torch.tensor([[4000.0]]))
    losses.sum().backward()
    assert torch.isfinite(cosines.grad).all()
