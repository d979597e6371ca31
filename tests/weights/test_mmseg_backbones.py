"""Backbones with mmsegmentation's weights: the same features, at sizes that are no multiple of the stride.

The fixtures hold thin networks of mmsegmentation 1.2.2 with random weights and norm statistics, an image, and
the features that mmsegmentation makes of it.
"""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.config.files import load_config
from regseg_d2.modeling.backbones.dilated_resnet import build_dilated_resnet_backbone
from regseg_d2.modeling.backbones.timm import TimmBackbone, build_timm_backbone
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_backbones import BACKBONE_RULES, merged_channels
from regseg_d2.weights.renaming import rename_all

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 1e-5

DILATED = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 2 MODEL.RESNETS.STEM_OUT_CHANNELS 8",
    "MODEL.RESNETS.RES5_MULTI_GRID [1,1,1]",
]
THIN_BOTTLENECKS = "stem_type: deep, stem_width: 4, channels: [2, 4, 8, 16]"
THIN_BLOCKS = "stem_type: deep, stem_width: 4, channels: [4, 8, 16, 32]"
HRNET = (
    "{stage1: {num_modules: 1, num_branches: 1, block_type: BOTTLENECK, num_blocks: [1], num_channels: [2], "
    "fuse_method: SUM}, "
    "stage2: {num_modules: 1, num_branches: 2, block_type: BASIC, num_blocks: [1, 1], num_channels: [2, 4], "
    "fuse_method: SUM}, "
    "stage3: {num_modules: 1, num_branches: 3, block_type: BASIC, num_blocks: [1, 1, 1], "
    "num_channels: [2, 4, 6], fuse_method: SUM}, "
    "stage4: {num_modules: 1, num_branches: 4, block_type: BASIC, num_blocks: [1, 1, 1, 1], "
    "num_channels: [2, 4, 6, 8], fuse_method: SUM}}"
)
SWIN = "{embed_dim: 4, depths: [2, 2, 2, 2], num_heads: [1, 1, 2, 4], window_size: 4, mlp_ratio: 2.0}"


def timm_options(name, stride, options):
    return ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name] + [
        *("MODEL.TIMM.OUTPUT_STRIDE", str(stride), "MODEL.TIMM.OPTIONS", options),
        *("MODEL.TIMM.CONVENTION", "mmseg"),
    ]


# Fixture, kind of rules, config.
CASES = {
    "resnet50_v1c_d8 by Detectron2": (
        "resnet50_v1c_d8",
        "dilated_resnet",
        " ".join([*DILATED, "MODEL.RESNETS.CONTRACT_DILATION True"]).split(),
    ),
    "resnet50_v1c_d16_mg by Detectron2": (
        "resnet50_v1c_d16_mg",
        "dilated_resnet",
        " ".join([*DILATED, "MODEL.RESNETS.OUTPUT_STRIDE 16 MODEL.RESNETS.RES5_DILATIONS [1,2,4]"]).split(),
    ),
    "resnet50_v1c_d8 by timm": (
        "resnet50_v1c_d8",
        "timm_resnet",
        timm_options("resnet50", 8, f"{{{THIN_BOTTLENECKS}}}"),
    ),
    "resnet18_v1c_d8": ("resnet18_v1c_d8", "timm_resnet", timm_options("resnet18", 8, f"{{{THIN_BLOCKS}}}")),
    "resnet18_v1d_d8": (
        "resnet18_v1d_d8",
        "timm_resnet",
        timm_options("resnet18", 8, f"{{{THIN_BLOCKS}, avg_down: True}}"),
    ),
    "hrnet_thin": ("hrnet_thin", "timm_hrnet", timm_options("hrnet_w18", 32, HRNET)),
    "swin_thin": (
        "swin_thin",
        "timm_swin_transformer",
        [
            *timm_options("swin_tiny_patch4_window7_224", 32, SWIN),
            *("MODEL.TIMM.OUT_NORM", "LN", "MODEL.TIMM.DROP_PATH", "0.3"),
        ],
    ),
}


def load(case, change=()):
    """The fixture, and the backbone with its weights; ``change`` are overrides that come last."""
    fixture_name, kind, opts = CASES[case]
    fixture = torch.load(FIXTURES / f"{fixture_name}.pt", weights_only=True)
    cfg = resolve_auto_norm(load_config("", ["MODEL.DEVICE", "cpu", *opts, *change]))
    builders = {"dilated_resnet": build_dilated_resnet_backbone}
    backbone = builders.get(kind, build_timm_backbone)(cfg, ShapeSpec(channels=3)).eval()
    state = {name.removeprefix("backbone."): value for name, value in fixture["state"].items()}
    renamed, unknown = rename_all(state, BACKBONE_RULES[kind])
    assert all(name.endswith("relative_position_index") for name in unknown), unknown
    backbone.load_state_dict(renamed, strict=True)
    return fixture, backbone


def largest_difference(fixture, backbone):
    with torch.no_grad():
        features = backbone(fixture["image"])
    assert [tuple(f.shape) for f in features.values()] == [tuple(f.shape) for f in fixture["features"]]
    return max(
        (ours - theirs).abs().max().item()
        for ours, theirs in zip(features.values(), fixture["features"], strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_features_are_mmsegmentations(case):
    fixture, backbone = load(case)
    assert all(feature.std() > 0.1 for feature in fixture["features"])
    assert any(size % backbone.size_divisibility for size in fixture["image"].shape[-2:])
    assert list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]
    assert largest_difference(fixture, backbone) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("resnet50_v1c_d8 by Detectron2", "MODEL.RESNETS.CONTRACT_DILATION False"),
        ("resnet50_v1c_d8 by Detectron2", "MODEL.RESNETS.RES5_MULTI_GRID [1,2,4]"),
        ("resnet50_v1c_d16_mg by Detectron2", "MODEL.RESNETS.RES5_DILATIONS []"),
        ("resnet18_v1c_d8", "MODEL.TIMM.CONVENTION timm"),
        ("resnet18_v1d_d8", "MODEL.TIMM.CONVENTION timm"),
        ("swin_thin", "MODEL.TIMM.OPTIONS.img_size 128 MODEL.TIMM.OPTIONS.always_partition False"),
    ],
)
def test_the_options_for_mmsegmentations_way_are_needed(case, change):
    fixture, backbone = load(case, change.split())
    assert largest_difference(fixture, backbone) > 100 * TOLERANCE


def test_timms_swin_differs_where_windows_do_not_fit():
    fixture, backbone = load("swin_thin")
    _, timms = load("swin_thin", ["MODEL.TIMM.CONVENTION", "timm"])
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for size, same in [((128, 128), True), ((96, 64), False)]:
            ours, theirs = (net(image[..., : size[0], : size[1]]) for net in (backbone, timms))
            close = [torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours]
            assert all(close) == same, (size, close)


def test_timms_hrnet_upsamples_to_the_nearest():
    fixture, backbone = load("hrnet_thin")
    _, timms = load("hrnet_thin", ["MODEL.TIMM.CONVENTION", "timm"])
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert (backbone(image)["res2"] - timms(image)["res2"]).abs().max() > 1e-3


def test_merged_channels_by_a_loop():
    channels = 3
    value = torch.randn(2, 4 * channels)
    result = merged_channels(value)
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                ours = (2 * column + row) * channels + channel
                assert torch.equal(result[:, ours], value[:, 4 * channel + 2 * row + column])
    assert torch.equal(merged_channels(value[0]), result[0])


def test_convnext_rules_name_every_tensor():
    options = {"dims": (4, 8, 12, 16), "depths": (1, 1, 2, 1)}
    backbone = TimmBackbone(
        name="convnext_tiny",
        output_stride=32,
        out_features=["res2", "res3", "res4", "res5"],
        out_norm="LN",
        options=options,
    )
    state = {}
    for stage, depth in enumerate(options["depths"]):
        names = [f"downsample_layers.{stage}.{i}." for i in (0, 1)] + [f"norm{stage}."]
        for block in range(depth):
            prefix = f"stages.{stage}.{block}."
            state[f"{prefix}gamma"] = torch.zeros(())
            parts = ("depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2")
            names += [f"{prefix}{part}." for part in parts]
        state.update({name + kind: torch.zeros(()) for name in names for kind in ("weight", "bias")})
    renamed, unknown = rename_all(state, BACKBONE_RULES["timm_convnext"])
    assert unknown == []
    assert sorted(renamed) == sorted(backbone.state_dict())


def test_two_routes_to_a_resnet_are_one_network():
    _, detectron2s = load("resnet50_v1c_d8 by Detectron2")
    fixture, timms = load("resnet50_v1c_d8 by timm")
    image = copy.deepcopy(fixture["image"])
    with torch.no_grad():
        for name, feature in detectron2s(image).items():
            torch.testing.assert_close(feature, timms(image)[name], rtol=0, atol=TOLERANCE)
