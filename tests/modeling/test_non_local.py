"""Non-local block against loops over pairs of pixels."""

import pytest
import torch

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import NonLocal
from regseg_d2.modeling.heads.contexts.non_local import NonLocalBlock
from regseg_d2.modeling.layers import pixel_attention


def make_block(use_scale=True, norm="BN"):
    """A block that is not the identity."""
    block = NonLocalBlock(channels=6, inner_channels=3, use_scale=use_scale, norm=norm).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    return block.eval()


def attention_by_loops(query, key, value, scale):
    """softmax over the key's pixels of scale * query . key, times value; one pair of pixels at a time."""
    out = torch.zeros(len(query), value.shape[1], *query.shape[2:], dtype=query.dtype)
    positions = [(i, j) for i in range(key.shape[2]) for j in range(key.shape[3])]
    for n in range(len(query)):
        for i in range(query.shape[2]):
            for j in range(query.shape[3]):
                products = [scale * sum(query[n, :, i, j] * key[n, :, a, b]) for a, b in positions]
                weights = [torch.exp(p - max(products)) for p in products]
                for weight, (a, b) in zip(weights, positions, strict=True):
                    out[n, :, i, j] += weight / sum(weights) * value[n, :, a, b]
    return out


@pytest.mark.parametrize(
    ("size", "key_size", "value_channels"), [((3, 5), (3, 5), 4), ((4, 3), (2, 3), 7), ((1, 1), (1, 1), 4)]
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pixel_attention_by_loops(size, key_size, value_channels, scale):
    query = torch.randn(2, 4, *size, dtype=torch.float64)
    key = torch.randn(2, 4, *key_size, dtype=torch.float64)
    value = torch.randn(2, value_channels, *key_size, dtype=torch.float64)
    expected = attention_by_loops(query, key, value, scale)
    torch.testing.assert_close(pixel_attention(query, key, value, scale), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value_channels", [3, 5])
def test_pixel_attention_gradients(value_channels):
    inputs = [torch.randn(1, c, 2, 3, dtype=torch.float64) for c in (3, 3, value_channels)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda q, k, v: pixel_attention(q, k, v, 0.7), inputs)


@pytest.mark.parametrize("use_scale", [False, True])
def test_block_by_hand(use_scale):
    block = make_block(use_scale)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    y = attention_by_loops(block.query(x), block.key(x), block.value(x), 3**-0.5 if use_scale else 1.0)
    expected = x + block.out.norm(torch.einsum("dc,nchw->ndhw", block.out.weight[..., 0, 0], y))
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN", ""])
def test_starts_as_the_identity_and_can_leave_it(norm):
    block = NonLocalBlock(channels=32, inner_channels=4, use_scale=True, norm=norm)
    x = torch.randn(2, 32, 4, 3)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    (block(x) * torch.randn(x.shape)).sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in block.out.parameters())


def test_blocks_around_the_attention_and_widths():
    context = NonLocal(in_channels=5, out_channels=8, reduction=4, use_scale=True, norm="BN").eval()
    assert context.attention.query.out_channels == 2
    x = torch.randn(1, 5, 7, 3)
    features, side_logits = context(x)
    assert side_logits == {}
    assert features.shape == (1, context.out_channels, 7, 3) == (1, 8, 7, 3)
    torch.testing.assert_close(features, context.after(context.attention(context.before(x))))


def test_more_reduction_than_channels_leaves_one():
    context = NonLocal(in_channels=5, out_channels=2, reduction=4, use_scale=True, norm="BN")
    assert context.attention.query.out_channels == 1


def test_wrong_reduction_is_named():
    with pytest.raises(ConfigError, match=r"MODEL\.SEM_SEG_HEAD\.ATTENTION_REDUCTION is 0; expected 1"):
        NonLocal(in_channels=5, out_channels=8, reduction=0, use_scale=True, norm="BN")
