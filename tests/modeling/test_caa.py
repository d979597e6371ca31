"""Channelized axial attention against the products that it never forms."""

import pytest
import torch

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import ChannelizedAxialAttention
from regseg_d2.modeling.heads.contexts.caa import AxialAttention, ChannelGate


def make(**options):
    defaults = {
        "in_channels": 5,
        "out_channels": 8,
        "key_channels": 3,
        "channel_gates": True,
        "hidden_layers": 2,
        "hidden_ratio": 0.5,
        "image_level": True,
        "norm": "BN",
    }
    return ChannelizedAxialAttention(**{**defaults, **options})


def make_gate(hidden_layers=1):
    """A gate whose outputs are far from one half and from each other."""
    gate = ChannelGate(4, 3, hidden_layers).double()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    return gate


def along_columns_by_loops(key, value, gate):
    """Forms every weighted value, gates it, and adds up; maps (N, h, w, c) and (N, h, w, C)."""
    batch, height, width, channels = value.shape
    out = torch.zeros_like(value)
    for n in range(batch):
        for i in range(height):
            # Row i of every column: what each row k of that column gives it.
            weighted = torch.zeros(height, width, channels, dtype=value.dtype)
            for j in range(width):
                products = [key[n, i, j] @ key[n, k, j] for k in range(height)]
                weights = [(p - max(products)).exp() for p in products]
                for k in range(height):
                    weighted[k, j] = weights[k] / sum(weights) * value[n, k, j]
            mean = weighted.sum(dim=(0, 1)) / (height * width)
            gates = 1.0 if gate is None else gate(mean[None, None])[0, 0]
            for k in range(height):
                out[n, i] += gates * weighted[k]
    return out


@pytest.mark.parametrize("size", [(3, 4), (5, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("gated", [False, True])
def test_one_axis_by_loops(size, gated):
    gate = make_gate() if gated else None
    key = torch.randn(2, *size, 3, dtype=torch.float64)
    value = torch.randn(2, *size, 4, dtype=torch.float64)
    # Lines first: the columns.
    result = AxialAttention(gate)(key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(result, along_columns_by_loops(key, value, gate), rtol=1e-10, atol=1e-10)


def test_gate_by_hand():
    gate = make_gate(hidden_layers=2)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    first, _, second, _, last, _ = gate.layers
    assert [layer.weight.shape for layer in (first, second, last)] == [(3, 4), (3, 3), (4, 3)]
    assert all(layer.bias is None for layer in (first, second, last))
    y = x @ first.weight.T
    y = torch.where(y > 0, y, 0.2 * y) @ second.weight.T
    y = torch.where(y > 0, y, 0.2 * y) @ last.weight.T
    torch.testing.assert_close(gate(x), 1 / (1 + (-y).exp()))


@pytest.mark.parametrize("channel_gates", [False, True])
@pytest.mark.parametrize("image_level", [False, True])
def test_columns_then_rows_and_the_image(channel_gates, image_level):
    context = make(channel_gates=channel_gates, image_level=image_level).double().eval()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    entry = context.before(x)
    # (N, h, w, c)
    column_key, row_key, value = (
        layer(entry).permute(0, 2, 3, 1) for layer in (context.column_key, context.row_key, context.value)
    )
    value = along_columns_by_loops(column_key, value, context.column_attention.gate)
    # Rows are the columns of the transposed image.
    transposed = along_columns_by_loops(
        row_key.transpose(1, 2), value.transpose(1, 2), context.row_attention.gate
    )
    expected = context.after(transposed.transpose(1, 2).permute(0, 3, 1, 2))
    if image_level:
        image = context.image_level(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, 3, 4)
        expected = torch.cat([expected, image], dim=1)
    features, side_logits = context(x)
    assert side_logits == {}
    assert features.shape[1] == context.out_channels == (16 if image_level else 8)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


def test_gradients():
    attention = AxialAttention(make_gate())
    key = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (key, value))


def test_every_pixel_reaches_every_other():
    context = make(image_level=False).double().eval()
    # 1x1, so that nothing but the attention moves between pixels; no ReLU of it may be shut.
    context.before = torch.nn.Conv2d(5, 8, kernel_size=1).double()
    for layer in (context.value, context.after):
        layer.activation = None
    x = torch.randn(1, 5, 4, 5, dtype=torch.float64, requires_grad=True)
    context(x)[0][0, :, 1, 2].sum().backward()
    assert (x.grad[0].abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_channels": 0}, r"MODEL\.SEM_SEG_HEAD\.CAA_KEY_CHANNELS is 0; expected 1 or more"),
        ({"hidden_layers": -1}, r"CAA_HIDDEN_LAYERS is -1; expected 0 or more"),
        ({"hidden_ratio": 0.0}, r"CAA_HIDDEN_RATIO is 0\.0; expected a number above 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_gates_without_hidden_layers():
    context = make(hidden_layers=0)
    assert [p.shape for p in context.column_attention.gate.parameters()] == [(8, 8)]
