"""OCR by hand, pixel by pixel, and in the head."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import OCR
from regseg_d2.segmentor.export import inference_model
from tests.helpers import NUM_CLASSES, small_batch, small_cfg


def make_ocr(norm="BN", key_channels=3):
    torch.manual_seed(0)
    return OCR(in_channels=6, out_channels=8, key_channels=key_channels, norm=norm).double()


def make_cfg(**overrides):
    return small_cfg(
        "FCN",
        SEM_SEG_HEAD__CONTEXT="OCR",
        SEM_SEG_HEAD__OCR_KEY_CHANNELS=4,
        SEM_SEG_HEAD__PROJECTION="",
        **{"SEM_SEG_HEAD__AUX__IN_FEATURE": "res3", **overrides},
    )


def by_hand(ocr, x, coarse):
    """Equations 8 to 11, one class and one pixel at a time."""
    x = ocr.bottleneck(x)
    num, channels, height, width = x.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]
    regions = torch.zeros(num, channels, coarse.shape[1], 1, dtype=x.dtype)
    for n in range(num):
        for k in range(coarse.shape[1]):
            total = sum(coarse[n, k, i, j].exp() for i, j in pixels)
            regions[n, :, k, 0] = sum(coarse[n, k, i, j].exp() / total * x[n, :, i, j] for i, j in pixels)
    queries, keys, values = ocr.query(x), ocr.key(regions), ocr.value(regions)
    context = torch.zeros_like(queries)
    for n in range(num):
        for i, j in pixels:
            products = [(queries[n, :, i, j] * keys[n, :, k, 0]).sum() for k in range(coarse.shape[1])]
            relations = (torch.stack(products) / queries.shape[1] ** 0.5).softmax(0)
            context[n, :, i, j] = sum(w * values[n, :, k, 0] for k, w in enumerate(relations))
    return ocr.fuse(torch.cat([ocr.expand(context), x], dim=1))


@pytest.mark.parametrize("size", [(2, 5), (4, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_by_hand(size, memory_format):
    ocr = make_ocr().eval()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    coarse = torch.randn(2, 4, *size, dtype=torch.float64) * 3
    result, side_outputs = ocr(
        x.contiguous(memory_format=memory_format), coarse.contiguous(memory_format=memory_format)
    )
    assert side_outputs == {}
    assert result.shape == (2, ocr.out_channels, *size)
    torch.testing.assert_close(result, by_hand(ocr, x, coarse))


def test_coarse_logits_of_another_size_are_resized():
    ocr = make_ocr().eval()
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    coarse = torch.randn(1, 4, 3, 4, dtype=torch.float64)
    resized = F.interpolate(coarse, size=(5, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ocr(x, coarse)[0], ocr(x, resized)[0], rtol=0, atol=0)


@pytest.mark.parametrize("labels", ["blocks", "void"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_training(batch_size, labels):
    torch.manual_seed(0)
    model = build_model(make_cfg())
    losses = model(small_batch(batch_size, labels=labels))
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux"}
    assert all((loss > 0) == (labels == "blocks") for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_main_loss_trains_the_auxiliary_head_through_the_regions():
    torch.manual_seed(0)
    model = build_model(make_cfg(SEM_SEG_HEAD__AUX__LOSS_WEIGHT=0.0))
    model(small_batch())["loss_sem_seg"].backward()
    assert model.sem_seg_head.auxiliary.predictor.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        # With HRNet: coarse logits of a 1x1 block on what the context reads, as wide as that.
        {
            "SEM_SEG_HEAD__AUX__IN_FEATURE": "fused",
            "SEM_SEG_HEAD__AUX__KERNEL_SIZE": 1,
            "SEM_SEG_HEAD__AUX__CHANNELS": 0,
        },
    ],
)
def test_the_auxiliary_head_stays_at_inference_and_when_deployed(overrides):
    torch.manual_seed(0)
    model = build_model(make_cfg(**overrides)).eval()
    batch = small_batch(1, size=(37, 61))
    result = model(batch)[0]["sem_seg"]
    assert result.shape == (NUM_CLASSES, 37, 61)
    assert torch.equal(inference_model(model)(batch)[0]["sem_seg"], result)
    head = model.sem_seg_head
    features = model.backbone(torch.randn(1, 3, 64, 64))
    deep = features["res4"]
    coarse = head.auxiliary(deep if overrides else features["res3"])
    expected = head.predictor(head.context(deep, coarse)[0])
    torch.testing.assert_close(head.layers(features)[0], expected, rtol=0, atol=0)


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="OCR_KEY_CHANNELS is 0"):
        make_ocr(key_channels=0)
    with pytest.raises(ConfigError, match="AUX.IN_FEATURE"):
        build_model(make_cfg(SEM_SEG_HEAD__AUX__IN_FEATURE=""))


def test_car_stands_in_place_of_the_last_block():
    """The published code of "OCR + CAR": its linear convolution reads what the 1x1 block would have mixed."""
    model = build_model(
        small_cfg(
            "FCN",
            ["CAR"],
            SEM_SEG_HEAD__CONTEXT="OCR",
            SEM_SEG_HEAD__OCR_FUSE=False,
            SEM_SEG_HEAD__PROJECTION="LinearConvBlock",
            SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=1,
            SEM_SEG_HEAD__AUX__IN_FEATURE="res3",
        )
    ).train()
    head = model.sem_seg_head
    width = head.context.bottleneck.out_channels
    assert head.projection.linear.in_channels == head.context.out_channels == 2 * width
    assert not list(head.context.fuse.parameters())
    assert model.regularizers["CAR"].feature_tap == "sem_seg_head.projection.linear:out"
    assert all(torch.isfinite(loss) for loss in model(small_batch()).values())
