"""Criss-cross attention: full attention under a mask, and loops over a pixel's row and column."""

import pytest
import torch

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import CrissCross
from regseg_d2.modeling.heads.contexts.ccnet import CrissCrossAttention, criss_cross

SIZES = [(3, 5), (4, 4), (1, 6), (6, 1), (1, 1)]


def make_maps(size, dtype=torch.float64):
    return [torch.randn(2, channels, *size, dtype=dtype) for channels in (3, 3, 4)]


def make_attention():
    attention = CrissCrossAttention(8).double()
    torch.nn.init.constant_(attention.gamma, 0.7)
    return attention


@pytest.mark.parametrize("size", SIZES)
def test_is_full_attention_under_a_mask(size):
    query, key, value = make_maps(size)
    row = torch.arange(size[0]).repeat_interleave(size[1])
    column = torch.arange(size[1]).repeat(size[0])
    # True once for the pixel itself, which is in its row and in its column.
    reached = (row[:, None] == row) | (column[:, None] == column)
    assert (reached.sum(dim=1) == size[0] + size[1] - 1).all()
    products = torch.einsum("nci,ncj->nij", query.flatten(2), key.flatten(2))
    weights = products.masked_fill(~reached, float("-inf")).softmax(dim=2)
    expected = torch.einsum("nij,ncj->nci", weights, value.flatten(2)).view_as(value)
    torch.testing.assert_close(criss_cross(query, key, value), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_by_loops(size):
    query, key, value = make_maps(size)
    expected = torch.zeros_like(value)
    for n in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                cross = [(i, b) for b in range(size[1])] + [(a, j) for a in range(size[0]) if a != i]
                weights = [(query[n, :, i, j] @ key[n, :, a, b]).exp() for a, b in cross]
                for weight, (a, b) in zip(weights, cross, strict=True):
                    expected[n, :, i, j] += weight / sum(weights) * value[n, :, a, b]
    torch.testing.assert_close(criss_cross(query, key, value), expected, rtol=1e-12, atol=1e-12)


def test_gradients():
    inputs = [x[:1].requires_grad_() for x in make_maps((2, 3))]
    assert torch.autograd.gradcheck(criss_cross, inputs)


def test_starts_as_the_identity():
    x = torch.randn(1, 16, 5, 4)
    assert torch.equal(CrissCrossAttention(16)(x), x)


def test_one_pass_reaches_the_cross_and_two_reach_all():
    attention = make_attention()
    for recurrence, reached in ((1, 4 + 5 - 1), (2, 4 * 5)):
        x = torch.randn(1, 8, 4, 5, dtype=torch.float64, requires_grad=True)
        y = x
        for _ in range(recurrence):
            y = attention(y)
        y[0, :, 1, 2].sum().backward()
        assert (x.grad[0].abs().sum(dim=0) > 0).sum() == reached


def test_passes_share_their_weights():
    contexts = [
        CrissCross(in_channels=5, out_channels=8, recurrence=recurrence, norm="BN") for recurrence in (1, 3)
    ]
    assert contexts[0].state_dict().keys() == contexts[1].state_dict().keys()
    context = contexts[1].eval()
    torch.nn.init.constant_(context.attention.gamma, 0.7)
    x = context.before(torch.randn(1, 5, 4, 5))
    once = context.attention
    expected = context.after(once(once(once(x))))
    context.before = torch.nn.Identity()
    torch.testing.assert_close(context(x)[0], expected)


def test_few_channels_leave_one_for_the_keys():
    assert CrissCrossAttention(4).query.out_channels == 1


def test_wrong_recurrence_is_named():
    with pytest.raises(ConfigError, match=r"MODEL\.SEM_SEG_HEAD\.CCNET_RECURRENCE is 0; expected 1 or more"):
        CrissCross(in_channels=5, out_channels=8, recurrence=0, norm="BN")
