"""Each attention context as a head that trains: any batch, any size, any norm, with CAR's projection."""

import pytest
import torch
from detectron2.modeling import build_model

from tests.helpers import NUM_CLASSES, small_batch, small_cfg

# The keys of each context's own head.
CONTEXTS = {
    "NonLocal": {"CONCAT_INPUT": True},
    "SelfAttention": {},
    "CrissCross": {"CONCAT_INPUT": True},
    "DualAttention": {"PROJECTION": ""},
    "ChannelizedAxialAttention": {"PROJECTION_KERNEL_SIZE": 1},
}
# Factors that start at zero: what is behind them has no gradient in the first step.
ZERO_STARTS = ("gamma", "attention.out.norm.weight")


def build(context, regularizers=(), **overrides):
    torch.manual_seed(1)
    keys = {"CONTEXT": context, **CONTEXTS[context], **overrides}
    cfg = small_cfg("FCN", regularizers, **{f"SEM_SEG_HEAD__{key}": value for key, value in keys.items()})
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.sem_seg_head.context.named_parameters():
            if name.endswith(ZERO_STARTS):
                parameter.fill_(0.5)
    return model


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_moves_every_parameter(context, batch_size, autocast):
    model = build(context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(small_batch(batch_size))
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.sem_seg_head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias of the keys adds the same to all products of a softmax: no gradient but rounding.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().sum() > 0, name
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("size", [(64, 64), (37, 61), (5, 90)])
def test_any_size(context, size):
    model = build(context).eval()
    result = model(small_batch(1, size=size))[0]["sem_seg"]
    assert result.shape == (NUM_CLASSES, *size)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("context", CONTEXTS)
def test_images_of_a_batch_do_not_see_each_other(context):
    model = build(context).eval()
    batch = small_batch(2)
    together = [result["sem_seg"] for result in model(batch)]
    for sample, result in zip(batch, together, strict=True):
        torch.testing.assert_close(model([sample])[0]["sem_seg"], result, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_void_batches_are_finite(context):
    losses = build(context)(small_batch(labels="void"))
    assert all(value == 0 and value.requires_grad for value in losses.values())


@pytest.mark.parametrize("context", CONTEXTS)
def test_with_cars_linear_convolution_and_losses(context):
    model = build(context, ["CAR"], PROJECTION="LinearConvBlock", PROJECTION_KERNEL_SIZE=1)
    losses = model(small_batch())
    declared = model.regularizers["CAR"].loss_keys
    sum(losses[key] for key in declared).backward()
    first = next(model.sem_seg_head.context.parameters())
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("context", CONTEXTS)
def test_channels_last_is_the_same_function(context):
    model = build(context).double().eval()
    batch = small_batch()
    expected = model(batch)[0]["sem_seg"]
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch)[0]["sem_seg"], expected, rtol=1e-9, atol=1e-9)
