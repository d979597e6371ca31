"""Dual attention: both attentions by hand, the side predictions and their losses."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import DualAttention
from regseg_d2.modeling.heads.contexts.danet import ChannelAttention, PositionAttention
from regseg_d2.modeling.heads.projections import LinearConvBlock
from regseg_d2.segmentor.export import inference_model
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg


def make(**options):
    defaults = {
        "in_channels": 5,
        "out_channels": 8,
        "key_channels": 3,
        "num_classes": 4,
        "side_loss_weight": 1.0,
        "dropout": 0.0,
        "norm": "BN",
    }
    return DualAttention(**{**defaults, **options})


def with_gamma(attention):
    attention = attention.double()
    torch.nn.init.constant_(attention.gamma, 0.7)
    return attention


def test_position_attention_by_loops():
    attention = with_gamma(PositionAttention(6, 3))
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    query, key, value = (f(x).flatten(2) for f in (attention.query, attention.key, attention.value))
    expected = x.flatten(2).clone()
    for n in range(2):
        for j in range(12):
            weights = [(query[n, :, j] @ key[n, :, i]).exp() for i in range(12)]
            for i in range(12):
                expected[n, :, j] += 0.7 * weights[i] / sum(weights) * value[n, :, i]
    torch.testing.assert_close(attention(x), expected.view_as(x), rtol=1e-10, atol=1e-10)


def channel_attention_by_loops(x):
    """Weights by the largest dot product of a channel less each, as published."""
    rows = x.flatten(2)
    out = torch.zeros_like(rows)
    for n in range(len(rows)):
        for j in range(rows.shape[1]):
            products = [rows[n, j] @ rows[n, i] for i in range(rows.shape[1])]
            # Shifted once more, which cancels out, so that nothing overflows.
            weights = [(min(products) - p).exp() for p in products]
            for i, weight in enumerate(weights):
                out[n, j] += weight / sum(weights) * rows[n, i]
    return x + 0.7 * out.view_as(x)


@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_channel_attention_by_loops(size, scale):
    x = scale * torch.randn(2, 5, *size, dtype=torch.float64)
    attention = with_gamma(ChannelAttention())
    torch.testing.assert_close(attention(x), channel_attention_by_loops(x), rtol=1e-10, atol=1e-10)


def test_channel_attention_is_in_single_precision_under_autocast():
    # Dot products near 2^17: bfloat16 would round them by hundreds, float16 would overflow.
    x = (16.0 + torch.rand(1, 4, 16, 32)).bfloat16()
    attention = ChannelAttention()
    torch.nn.init.constant_(attention.gamma, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = attention(x)
    assert result.dtype == torch.bfloat16
    expected = attention.double()(x.double())
    assert ((result.double() - expected).abs() / expected.abs()).max() < 2**-6


@pytest.mark.parametrize("attention", [PositionAttention(4, 2), ChannelAttention()])
def test_gradients(attention):
    x = torch.rand(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(with_gamma(attention), x)


@pytest.mark.parametrize("attention", [PositionAttention(16, 4), ChannelAttention()])
def test_starts_as_the_identity(attention):
    x = torch.randn(1, 16, 5, 4)
    assert torch.equal(attention(x), x)


def test_sum_and_side_logits():
    context = make().train()
    x = torch.randn(2, 5, 7, 3)
    position = context.position_after(context.position_attention(context.position_before(x)))
    channel = context.channel_after(context.channel_attention(context.channel_before(x)))
    features, side_logits = context(x)
    torch.testing.assert_close(features, position + channel)
    assert set(side_logits) == {"position", "channel"}
    torch.testing.assert_close(side_logits["position"], context.position_predictor(position))
    torch.testing.assert_close(side_logits["channel"], context.channel_predictor(channel))
    assert side_logits["channel"].shape == (2, 4, 7, 3)
    features, side_logits = context.eval()(x)
    assert side_logits == {}
    assert features.shape == (2, context.out_channels, 7, 3)


def test_side_classifiers_read_dropped_out_features():
    context = make(dropout=1.0).train()
    _, side_logits = context(torch.randn(2, 5, 4, 4))
    for name, predictor in (("position", context.position_predictor), ("channel", context.channel_predictor)):
        expected = predictor.bias.view(1, -1, 1, 1).expand_as(side_logits[name])
        assert torch.equal(side_logits[name], expected)


def test_losses_of_the_side_predictions_have_their_weight():
    cfg = small_cfg(
        "FCN",
        SEM_SEG_HEAD__CONTEXT="DualAttention",
        SEM_SEG_HEAD__PROJECTION="",
        SEM_SEG_HEAD__DROPOUT=0.0,
        SEM_SEG_HEAD__DANET_SIDE_LOSS_WEIGHT=0.4,
    )
    model = build_model(cfg)
    batch = small_batch()
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_position", "loss_sem_seg_channel"}
    images = torch.stack([(sample["image"] - model.pixel_mean) / model.pixel_std for sample in batch])
    targets = torch.stack([sample["sem_seg"] for sample in batch])
    _, side_logits = model.sem_seg_head.layers(model.backbone(images))
    for name, logits in side_logits.items():
        assert logits.shape[1] == NUM_CLASSES
        full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
        expected = 0.4 * F.cross_entropy(full, targets, ignore_index=IGNORE)
        torch.testing.assert_close(losses[f"loss_sem_seg_{name}"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_channels": 0}, r"MODEL\.SEM_SEG_HEAD\.DANET_KEY_CHANNELS is 0; expected 1 or more"),
        ({"side_loss_weight": -1.0}, r"DANET_SIDE_LOSS_WEIGHT is -1\.0; expected a number of 0 or more"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_car_stands_in_place_of_the_last_blocks():
    """The published code of "DANet + CAR": losses on both branches, and nothing is left of the 3x3 blocks."""
    channel = CfgNode({"FEATURES": "sem_seg_head.context.channel_after.linear:out"})
    cfg = small_cfg(
        "FCN",
        ["CAR", "CAR@channel"],
        SEM_SEG_HEAD__CONTEXT="DualAttention",
        SEM_SEG_HEAD__DANET_LAST="LinearConvBlock",
        SEM_SEG_HEAD__PROJECTION="",
        REGULARIZERS__CAR__FEATURES="sem_seg_head.context.position_after.linear:out",
    )
    cfg.MODEL.REGULARIZERS["CAR@channel"] = channel
    model = build_model(cfg).train()
    kernels = [m.kernel_size for m in model.sem_seg_head.context.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels.count((3, 3)) == 2  # those before the attention
    losses = model(small_batch())
    assert {"loss_car_intra_c2p", "loss_car@channel_intra_c2p"} <= set(losses)
    assert losses["loss_car_intra_c2p"].item() != losses["loss_car@channel_intra_c2p"].item()
    model.eval()
    folded = inference_model(model)
    image = [{"image": torch.rand(3, 64, 64) * 255}]
    with torch.no_grad():
        torch.testing.assert_close(
            folded(image)[0]["sem_seg"], model(image)[0]["sem_seg"], rtol=1e-4, atol=1e-4
        )
    assert not any(isinstance(m, LinearConvBlock) for m in folded.modules())


def test_the_last_block_is_checked():
    with pytest.raises(ConfigError, match="DANET_LAST is 'Conv'"):
        build_model(small_cfg("FCN", SEM_SEG_HEAD__CONTEXT="DualAttention", SEM_SEG_HEAD__DANET_LAST="Conv"))
