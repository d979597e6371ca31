"""Fusions: several features become one."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import JPU, PPM, Concat, ContextHead, MLPFusion, SemanticFPN, UPerFPN
from regseg_d2.modeling.norms import resolve_auto_norm
from tests.helpers import NUM_CLASSES, small_batch, small_cfg
from tests.references.transformer import convolve, resize_bilinear

WIDTHS = (3, 4, 5)
SIZES = ((9, 7), (5, 4), (3, 2))
OUT_CHANNELS = {"Concat": 12, "UPerFPN": 48, "MLPFusion": 48, "JPU": 12, "SemanticFPN": 16}
FUSIONS = tuple(OUT_CHANNELS)


def make_features(batch_size=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(batch_size, width, *size, generator=generator, dtype=dtype)
        for width, size in zip(WIDTHS, SIZES, strict=True)
    ]


def prepare(fusion):
    """In float64, for evaluation, with norms that do something."""
    generator = torch.Generator().manual_seed(4)
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return fusion.double().eval()


def block(conv, x, relu=True):
    """Convolution, norm and ReLU of one image ``(C, h, w)`` by loops."""
    y = convolve(
        x, conv.weight.detach(), None, padding=conv.padding[0], dilation=conv.dilation[0], groups=conv.groups
    )
    norm = conv.norm
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias.detach()[:, None, None]
    return y.clamp(min=0) if relu else y


def beside(levels):
    height, width = levels[0].shape[1:]
    return torch.cat([resize_bilinear(level, height, width) for level in levels])


def expect(fusion, features, reference):
    result = fusion(features)
    assert result.shape == (len(features[0]), fusion.out_channels, *SIZES[0])
    for index, image in enumerate(result):
        torch.testing.assert_close(image, reference([x[index] for x in features]))


def test_concat_by_loops():
    expect(Concat(in_channels=WIDTHS), make_features(), beside)


def test_mlp_fusion_by_loops():
    fusion = prepare(MLPFusion(in_channels=WIDTHS, channels=4, norm="BN", level_norm=True))
    expect(
        fusion,
        make_features(1),
        lambda levels: beside([block(e, x) for e, x in zip(fusion.embeds, levels, strict=True)]),
    )


def test_mlp_fusion_of_the_paper_is_linear():
    torch.manual_seed(0)
    fusion = MLPFusion(in_channels=WIDTHS, channels=4, norm="BN", level_norm=False).double()
    features = make_features(1)
    expect(
        fusion,
        features,
        lambda levels: beside(
            [
                convolve(x, e.weight.detach(), e.bias.detach())
                for e, x in zip(fusion.embeds, levels, strict=True)
            ]
        ),
    )
    result = fusion(features)
    assert (result < 0).any()
    zero = fusion([torch.zeros_like(x) for x in features])
    torch.testing.assert_close(fusion([2 * x for x in features]) - zero, 2 * (result - zero))


def test_jpu_by_loops():
    torch.manual_seed(0)
    fusion = prepare(JPU(in_channels=WIDTHS, channels=2, dilations=(1, 3), norm="BN"))

    def reference(levels):
        joined = beside([block(conv, x) for conv, x in zip(fusion.convs, levels, strict=True)])
        return torch.cat(
            [block(b.pointwise, block(b.depthwise, joined, relu=False)) for b in fusion.branches]
        )

    assert [b.depthwise.dilation for b in fusion.branches] == [(1, 1), (3, 3)]
    expect(fusion, make_features(1), reference)


def test_upernet_by_loops():
    torch.manual_seed(0)
    fusion = prepare(UPerFPN(in_channels=WIDTHS, channels=4, pool_sizes=(1, 2), norm="BN"))

    def reference(levels):
        # The pyramid pooling has tests of its own.
        top = fusion.ppm(levels[2][None])[0][0]
        middle = block(fusion.laterals[1], levels[1]) + resize_bilinear(top, *SIZES[1])
        fine = block(fusion.laterals[0], levels[0]) + resize_bilinear(middle, *SIZES[0])
        return beside([block(fusion.smooths[0], fine), block(fusion.smooths[1], middle), top])

    with torch.no_grad():
        expect(fusion, make_features(1), reference)


def nearest(x, height, width):
    """``x (C, h, w)`` at another size: each pixel is the one whose cell its upper left corner lies in."""
    rows = [y * x.shape[1] // height for y in range(height)]
    columns = [i * x.shape[2] // width for i in range(width)]
    return torch.stack([torch.stack([x[:, y, i] for i in columns], dim=1) for y in rows], dim=1)


def test_semantic_fpn_by_loops():
    torch.manual_seed(0)
    fusion = prepare(
        SemanticFPN(in_channels=WIDTHS, strides=(4, 8, 16), pyramid_channels=3, channels=2, norm="BN")
    )
    assert [len(blocks) for blocks in fusion.scales] == [1, 1, 2]

    def plain(conv, x):
        return convolve(x, conv.weight.detach(), conv.bias.detach(), padding=conv.padding[0])

    def twice(x):
        return resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2])

    def reference(levels):
        top = plain(fusion.laterals[2], levels[2])
        middle = plain(fusion.laterals[1], levels[1]) + nearest(top, *SIZES[1])
        fine = plain(fusion.laterals[0], levels[0]) + nearest(middle, *SIZES[0])
        fine, middle, top = (
            plain(conv, x) for conv, x in zip(fusion.smooths, (fine, middle, top), strict=True)
        )
        fine = block(fusion.scales[0][0], fine)
        middle = twice(block(fusion.scales[1][0], middle))
        top = twice(block(fusion.scales[2][1], twice(block(fusion.scales[2][0], top))))
        return fine + resize_bilinear(middle, *SIZES[0]) + resize_bilinear(top, *SIZES[0])

    with torch.no_grad():
        expect(fusion, make_features(1), reference)


class GivenFeatures(Backbone):
    """A backbone that takes features for an image."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def output_shape(self):
        return self.shapes

    def forward(self, features):
        return features


@torch.no_grad()
def test_detectron2s_semantic_fpn_is_the_same_function():
    widths = {"res2": 3, "res3": 4, "res4": 5}
    strides = {"res2": 4, "res3": 8, "res4": 16}
    shapes = {name: ShapeSpec(channels=widths[name], stride=strides[name]) for name in widths}
    pyramid = FPN(GivenFeatures(shapes), list(widths), 6).eval()
    theirs = SemSegFPNHead(
        {f"p{i}": ShapeSpec(channels=6, stride=2**i) for i in (2, 3, 4)},
        num_classes=5,
        conv_dims=8,
        common_stride=4,
        norm="BN",
    ).eval()
    ours = SemanticFPN(
        in_channels=(3, 4, 5), strides=(4, 8, 16), pyramid_channels=6, channels=8, norm="BN"
    ).eval()
    for i in (2, 3, 4):
        getattr(pyramid, f"fpn_lateral{i}").load_state_dict(ours.laterals[i - 2].state_dict())
        getattr(pyramid, f"fpn_output{i}").load_state_dict(ours.smooths[i - 2].state_dict())
        blocks = [module for module in getattr(theirs, f"p{i}") if not isinstance(module, nn.Upsample)]
        for block_, our_block in zip(blocks, ours.scales[i - 2], strict=True):
            block_.load_state_dict(our_block.state_dict())
    features = {name: torch.randn(2, widths[name], 64 // s, 32 // s) for name, s in strides.items()}
    summed = ours(list(features.values()))
    torch.testing.assert_close(theirs.predictor(summed), theirs.layers(pyramid(features)))


def test_branches_of_the_pooling_are_as_wide_as_the_levels():
    fusion = UPerFPN(in_channels=(8, 64), channels=6, pool_sizes=(1, 2, 3), norm="BN")
    assert isinstance(fusion.ppm, PPM)
    assert [branch.out_channels for branch in fusion.ppm.branches] == [6, 6, 6]
    assert fusion.ppm.fuse.in_channels == 64 + 3 * 6


def fused_cfg(fusion, **overrides):
    return small_cfg(
        "FCN",
        **{
            "SEM_SEG_HEAD__FUSION": fusion,
            "SEM_SEG_HEAD__IN_FEATURES": ["res4", "res2", "res3"],
            "SEM_SEG_HEAD__FCN_NUM_CONVS": 0,
            "SEM_SEG_HEAD__JPU_CHANNELS": 3,
            "SEM_SEG_HEAD__FPN_CHANNELS": 6,
            **overrides,
        },
    )


def make_head(fusion, **overrides):
    shapes = {f"res{i + 2}": ShapeSpec(channels=w, stride=4 * 2**i) for i, w in enumerate(WIDTHS)}
    return ContextHead(resolve_auto_norm(fused_cfg(fusion, **overrides)), shapes)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_in_the_head_the_context_reads_all_features_at_the_smallest_stride(fusion):
    head = make_head(fusion, SEM_SEG_HEAD__AUX__IN_FEATURE="fused").train()
    features = {f"res{i + 2}": x for i, x in enumerate(make_features(1, torch.float32))}
    fused = head.fusion([features["res2"], features["res3"], features["res4"]])
    # No convolution between the fusion and the projection: FCN_NUM_CONVS 0 passes it through.
    assert head.context(fused)[0] is fused
    assert fused.shape[1] == OUT_CHANNELS[fusion] == head.projection.conv.in_channels
    logits, side = head.layers(features)
    assert logits.shape == side["aux"].shape == (1, NUM_CLASSES, *SIZES[0])
    assert head.common_stride == 4 and len(head.skips) == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_network_takes_a_training_step_and_keeps_the_size(fusion):
    model = build_model(fused_cfg(fusion))
    sum(model(small_batch(1)).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.eval()(small_batch(1, size=(37, 61)))[0]["sem_seg"].shape == (NUM_CLASSES, 37, 61)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_reach_all_features(fusion):
    head = make_head(fusion).eval()
    features = [x.requires_grad_() for x in make_features(1, torch.float32)]
    head.fusion(features).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in features)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_feature_is_refused(fusion):
    with pytest.raises(ConfigError, match=f"FUSION is '{fusion}'.*IN_FEATURES has 1 feature"):
        make_head(fusion, SEM_SEG_HEAD__IN_FEATURES=["res4"])


@pytest.mark.parametrize(
    ("fusion", "key", "value"),
    [
        ("JPU", "JPU_CHANNELS", 0),
        ("JPU", "JPU_DILATIONS", []),
        ("JPU", "JPU_DILATIONS", [1, 0]),
        ("UPerFPN", "PPM_POOL_SIZES", [0]),
        ("SemanticFPN", "FPN_CHANNELS", 0),
        ("Concatenate", "FUSION", "Concatenate"),
    ],
)
def test_wrong_values_are_named(fusion, key, value):
    with pytest.raises(ConfigError, match=rf"MODEL\.SEM_SEG_HEAD\.{key}"):
        make_head(fusion, **{f"SEM_SEG_HEAD__{key}": value})
