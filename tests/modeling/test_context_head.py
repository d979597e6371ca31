"""The head: its stages in order, its losses, its skips, its errors."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg

SHAPES = {
    "res2": ShapeSpec(channels=6, stride=4),
    "res3": ShapeSpec(channels=8, stride=8),
    "res4": ShapeSpec(channels=10, stride=16),
}


def make_head(name="ASPP", **overrides):
    torch.manual_seed(0)
    overrides = {"SEM_SEG_HEAD__DROPOUT": 0.0, "SEM_SEG_HEAD__ASPP_DROPOUT": 0.0, **overrides}
    return ContextHead(resolve_auto_norm(small_cfg(name, **overrides)), SHAPES)


def make_features(requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, s.channels, 64 // s.stride, 64 // s.stride, generator=generator)
        for name, s in SHAPES.items()
    }


def test_stages_by_hand():
    head = make_head("ASPP").eval()
    features = make_features()
    x = head.context.aspp(features["res4"])
    low = head.skips[0].project(features["res2"])
    x = torch.cat([low, F.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False)], dim=1)
    logits = head.predictor(head.projection.conv(head.skips[0].fuse(x)))
    expected = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    result, losses = head(features)
    assert losses == {}
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_linear_projection_is_linear_and_comes_before_the_block():
    head = make_head("FCN-linear").eval()
    assert head.projection.linear.kernel_size == (1, 1)
    assert head.projection.linear.bias is not None
    assert head.projection.linear.out_channels == min(16, 512)
    features = make_features()
    x = head.context.convs(features["res4"])
    linear = F.conv2d(x, head.projection.linear.weight, head.projection.linear.bias)
    block = head.projection.conv
    expected = torch.relu(block.norm(F.conv2d(linear, block.weight)))
    torch.testing.assert_close(head.projection(x), expected)
    assert (linear < 0).any()


def test_main_and_auxiliary_losses_have_their_weights():
    head = make_head(
        "FCN-linear",
        SEM_SEG_HEAD__LOSS_WEIGHT=2.0,
        SEM_SEG_HEAD__AUX__LOSS_WEIGHT=0.3,
        SEM_SEG_HEAD__AUX__DROPOUT=0.0,
    )
    features = make_features()
    targets = torch.stack([sample["sem_seg"] for sample in small_batch()])
    _, losses = head(features, targets)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux"}
    logits, side = head.layers(features)
    for key, weight, small in (
        ("loss_sem_seg", 2.0, logits),
        ("loss_sem_seg_aux", 0.3, side["aux"]),
    ):
        full = F.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
        expected = weight * F.cross_entropy(full, targets, ignore_index=IGNORE)
        torch.testing.assert_close(losses[key], expected)
    head.eval()
    assert head.layers(features)[1] == {}


def test_two_low_level_skips_are_used_from_deep_to_shallow():
    head = make_head(
        "ASPP", SEM_SEG_HEAD__IN_FEATURES=["res4", "res2", "res3"], SEM_SEG_HEAD__PROJECT_CHANNELS=[5, 7]
    )
    assert head.in_features == ["res2", "res3", "res4"]
    widths = [(skip.project.in_channels, skip.project.out_channels) for skip in head.skips]
    assert widths == [(8, 7), (6, 5)]
    logits, _ = head.layers(make_features())
    assert logits.shape == (2, NUM_CLASSES, 16, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"SEM_SEG_HEAD__CONTEXT": "ASP"}, "ASPP"),
        ({"SEM_SEG_HEAD__PROJECTION": "Conv"}, "ConvBlock"),
        ({"SEM_SEG_HEAD__AUGMENT": "Memory"}, "AUGMENT"),
        ({"SEM_SEG_HEAD__IN_FEATURES": ["res9"]}, "res9"),
        ({"SEM_SEG_HEAD__AUX__IN_FEATURE": "res7"}, "res7"),
        ({"SEM_SEG_HEAD__PROJECT_CHANNELS": [8, 8, 8]}, "PROJECT_CHANNELS"),
        ({"SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE": 2}, "PROJECTION_KERNEL_SIZE"),
        ({"SEM_SEG_HEAD__CLASS_WEIGHTS": [1.0]}, "CLASS_WEIGHTS"),
        ({"REGULARIZERS__NAMES": ["CARR"]}, "CAR"),
        ({"REGULARIZERS__NAMES": ["CAR", "CAR"]}, "twice"),
        ({"REGULARIZERS__CAR__FEATURES": "sem_seg_head.predicto:in"}, "sem_seg_head.predictor"),
    ],
)
def test_wrong_names_and_numbers_are_errors_when_the_model_is_built(overrides, message):
    regularizers = overrides.pop("REGULARIZERS__NAMES", ["CAR"])
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg("ASPP", regularizers, **overrides))


@pytest.mark.parametrize("size", [(64, 64), (37, 61), (5, 90)])
def test_any_size_is_padded_and_cropped_back(size):
    model = build_model(small_cfg("ASPP"))
    sample = {"image": small_batch(1, size=size)[0]["image"]}
    model.eval()
    result = model([sample])[0]["sem_seg"]
    assert result.shape == (NUM_CLASSES, *size)
    # The padded network sees the same pixels: zero padding by hand gives the same logits.
    padded = torch.zeros(3, -(-size[0] // 16) * 16, -(-size[1] // 16) * 16)
    padded[:, : size[0], : size[1]] = (sample["image"] - model.pixel_mean) / model.pixel_std
    logits, _ = model.sem_seg_head(model.backbone(padded[None]))
    torch.testing.assert_close(result, logits[0, :, : size[0], : size[1]])


def test_channels_last_is_the_same_function():
    models = []
    for channels_last in (False, True):
        torch.manual_seed(1)
        # Without dropout: its masks are drawn in the order of memory.
        cfg = small_cfg(
            "ASPP",
            ["CAR"],
            CHANNELS_LAST=channels_last,
            SEM_SEG_HEAD__DROPOUT=0.0,
            SEM_SEG_HEAD__ASPP_DROPOUT=0.0,
        )
        models.append(build_model(cfg).double())
    assert models[1].sem_seg_head.skips[0].fuse.weight.is_contiguous(memory_format=torch.channels_last)
    expected, losses = (model(small_batch()) for model in models)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-9, atol=1e-12)


def test_features_of_one_stride_are_taken_in_the_order_of_their_stages():
    """As those of a dilated network: the deepest comes last, whatever the order in the config."""
    cfg = small_cfg(
        "ASPP", SEM_SEG_HEAD__IN_FEATURES=["res2", "res5", "res4"], SEM_SEG_HEAD__PROJECT_CHANNELS=[5, 7]
    )
    shapes = {
        "res2": ShapeSpec(channels=6, stride=4),
        "res5": ShapeSpec(channels=12, stride=8),
        "res4": ShapeSpec(channels=10, stride=8),
    }
    assert ContextHead(resolve_auto_norm(cfg), shapes).in_features == ["res2", "res4", "res5"]
