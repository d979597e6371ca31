"""timm backbones: features, names, norms of features, any size, options, errors."""

import copy

import pytest
import timm
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.modeling.backbones.timm import OutNorm, TimmBackbone
from tests.helpers import small_cfg
from tests.modeling.timm_networks import ALL, NETWORKS, build, randomise


@pytest.mark.parametrize("kind", NETWORKS)
def test_features_are_timms_behind_the_padding_of_the_segmentor(kind):
    name, options, needed, strides = NETWORKS[kind]
    torch.manual_seed(0)
    ours = randomise(build(kind)).eval()
    theirs = timm.create_model(name, features_only=True, **{**needed, **options}).eval()
    theirs.load_state_dict(ours.network.state_dict())
    images = [torch.randn(3, 61, 83), torch.randn(3, 45, 70)]
    padded = ImageList.from_tensors(images, ours.size_divisibility).tensor
    size = max(strides) if kind != "dinov2" else 14
    assert ours.size_divisibility == size
    assert padded.shape[-2:] == (-(-61 // size) * size, -(-83 // size) * size)
    with torch.no_grad():
        features, expected = ours(padded), theirs(padded)
    if kind == "swin":
        expected = [feature.permute(0, 3, 1, 2) for feature in expected]
    assert list(features) == ALL
    for (stage, feature), other, stride in zip(features.items(), expected, strides, strict=True):
        assert feature.std() > 1e-3
        torch.testing.assert_close(feature, other, rtol=0, atol=1e-5)
        shape = ours.output_shape()[stage]
        assert (shape.stride, shape.channels) == (stride, feature.shape[1])
        assert feature.shape[-2:] == (padded.shape[-2] // stride, padded.shape[-1] // stride)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("hrnet_w18", [18, 36, 72, 144]),
        ("hrnet_w32", [32, 64, 128, 256]),
        ("hrnet_w48", [48, 96, 192, 384]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),
        ("swin_small_patch4_window7_224", [96, 192, 384, 768]),
        ("swin_base_patch4_window12_384", [128, 256, 512, 1024]),
        ("swin_large_patch4_window12_384", [192, 384, 768, 1536]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("convnext_small", [96, 192, 384, 768]),
        ("convnext_base", [128, 256, 512, 1024]),
        ("convnext_large", [192, 384, 768, 1536]),
        ("efficientnet_b0", [24, 40, 112, 320]),
        ("tf_efficientnet_b5", [40, 64, 176, 512]),
        ("tf_efficientnet_b7", [48, 80, 224, 640]),
        ("tf_efficientnet_lite4", [32, 56, 160, 448]),
        ("vit_base_patch14_dinov2", [768] * 4),
        ("pvt_v2_b0", [32, 64, 160, 256]),
        ("mobilenetv3_large_100", [24, 40, 112, 960]),
    ],
)
def test_full_sizes_without_memory(name, channels):
    with torch.device("meta"):
        backbone = TimmBackbone(name=name, output_stride=32, out_features=ALL)
    shapes = backbone.output_shape()
    assert [shapes[stage].channels for stage in ALL] == channels
    assert [shapes[s].stride for s in ALL] == ([14] * 4 if "dino" in name else [4, 8, 16, 32])


def test_blocks_of_a_vision_transformer():
    name, options, _, _ = NETWORKS["dinov2"]
    backbone = build("dinov2", out_features=["res3", "res5"], out_blocks=[0, 6]).eval()
    theirs = timm.create_model(
        name, features_only=True, out_indices=(0, 6), dynamic_img_size=True, **options
    ).eval()
    theirs.load_state_dict(backbone.network.state_dict())
    image = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        for feature, other in zip(backbone(image).values(), theirs(image), strict=True):
            torch.testing.assert_close(feature, other)
    assert list(backbone.output_shape()) == ["res3", "res5"]


@pytest.mark.parametrize("size", [(50, 75), (33, 64)])
@pytest.mark.parametrize("kind", ["swin", "dinov2", "hrnet", "convnext"])
def test_any_size_in_the_segmentor(kind, size):
    name, options, _, _ = NETWORKS[kind]
    cfg = small_cfg(SEM_SEG_HEAD__CONTEXT="FCN", SEM_SEG_HEAD__IN_FEATURES=["res4"])
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.OPTIONS.update(copy.deepcopy(options))
    cfg.MODEL.TIMM.OUT_NORM = "LN"
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, *size)).to(torch.uint8)
    with torch.no_grad():
        (result,) = model([{"image": image, "height": size[0], "width": size[1]}])
    assert result["sem_seg"].shape[-2:] == size
    assert torch.isfinite(result["sem_seg"]).all()


@pytest.mark.parametrize("kind", ["swin", "convnext", "resnet"])
def test_out_norm_is_a_layer_norm_over_channels(kind):
    plain, normed = build(kind).eval(), randomise(build(kind, out_norm="LN")).eval()
    plain.load_state_dict(
        {name: value for name, value in normed.state_dict().items() if not name.startswith("out_norms.")}
    )
    image = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        features, expected = normed(image), plain(image)
    eps = {"convnext": 1e-6, "swin": 1e-5, "resnet": 1e-5}[kind]
    for stage, feature in features.items():
        norm, x = normed.out_norms[stage], expected[stage].double()
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + eps).sqrt()
        x = x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        assert isinstance(norm, OutNorm) and norm.eps == eps
        torch.testing.assert_close(feature.double(), x, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------- configuration, errors


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("swin", {"output_stride": 16}, "OUTPUT_STRIDE is 16"),
        ("swin", {"options": {"embed_dims": 8}}, "embed_dims"),
        ("swin", {"options": {"pretrained": True}}, "OPTIONS.pretrained cannot be given"),
        ("swin", {"options": {"out_indices": (1,)}}, "it is MODEL.TIMM.OUT_FEATURES"),
        ("swin", {"out_features": ["res1"]}, r"has no \['res1'\]; it has \['res2'"),
        ("swin", {"out_features": []}, "OUT_FEATURES: it is empty"),
        ("swin", {"out_blocks": [1]}, "OUT_BLOCKS"),
        ("swin", {"out_norm": "BN"}, "OUT_NORM is 'BN'"),
        ("swin", {"convention": "d2"}, "CONVENTION is 'd2'"),
        ("swin", {"drop_path": 1.0}, "DROP_PATH is 1.0"),
        ("swin", {"drop_path": 0.1, "options": {"drop_path_rate": 0.1}}, "give one of them"),
        ("hrnet", {"drop_path": 0.1}, "drop_path_rate"),
        ("hrnet", {"checkpoint": True}, "no gradient checkpointing for 'hrnet_w18'"),
        ("resnet", {"freeze_at": 6}, "FREEZE_AT is 6"),
        ("resnet", {"freeze_at": 4, "out_features": ["res3"]}, "FREEZE_AT is 4"),
        ("dinov2", {"out_blocks": [1, 2]}, r"OUT_BLOCKS is \[1, 2\]; expected 4 increasing"),
        ("dinov2", {"out_blocks": [1, 2, 3, 8]}, "blocks 0 to 7"),
        ("dinov2", {"out_blocks": [2, 1, 3, 4]}, "increasing"),
    ],
)
def test_errors_name_key_and_value(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build(kind, **arguments)


def test_options_from_file_and_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet18, OUTPUT_STRIDE: 8, OPTIONS: {stem_type: deep, "
        "stem_width: 8, block_args: {attn_layer: se}}}}\n"
    )
    cfg = load_config(
        str(path), ["MODEL.TIMM.OPTIONS.stem_width", "4", "MODEL.TIMM.OPTIONS", "{channels: [4, 8, 8, 8]}"]
    )
    assert cfg.MODEL.TIMM.OPTIONS == {
        "stem_type": "deep",
        "stem_width": 4,
        "block_args": {"attn_layer": "se"},
        "channels": [4, 8, 8, 8],
    }
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.SEM_SEG_HEAD.CONTEXT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    backbone = build_model(cfg).backbone
    assert backbone.network.conv1[0].out_channels == 4
    assert type(backbone.network.layer1[0].se).__name__ == "SEModule"
    assert backbone.output_shape()["res5"].channels == 8
    # Printed, and read again.
    copied = tmp_path / "copy.yaml"
    copied.write_text(cfg.dump())
    assert load_config(str(copied)).MODEL.TIMM.OPTIONS == cfg.MODEL.TIMM.OPTIONS
    assert load_config("").MODEL.TIMM.OPTIONS == {}


def test_options_are_a_section():
    with pytest.raises(ConfigError, match="'MODEL.TIMM.OPTIONS' is a section"):
        load_config("", ["MODEL.TIMM.OPTIONS", "3"])


@pytest.mark.parametrize("kind", ["convnext", "dinov2", "hrnet", "swin"])
def test_weights_of_the_full_network_by_name(kind, tmp_path):
    name, options, needed, _ = NETWORKS[kind]
    needed = {key: v for key, v in needed.items() if key not in ("feature_location", "out_indices")}
    full = randomise(timm.create_model(name, **needed, **options))
    path = tmp_path / "weights.pth"
    torch.save(full.state_dict(), path)
    backbone = build(kind)
    backbone.load_pretrained(str(path))
    for key, value in backbone.network.state_dict().items():
        original = key.removeprefix("model.")
        if original not in full.state_dict():
            original = original.replace("_", ".", 1)
        assert torch.equal(value, full.state_dict()[original]), key


def test_blocks_behind_the_last_feature_are_not_computed():
    full = TimmBackbone(name="tf_efficientnet_lite0", output_stride=16, out_features=["res2", "res4", "res5"])
    part = TimmBackbone(name="tf_efficientnet_lite0", output_stride=16, out_features=["res2", "res4"])
    missing = part.load_state_dict(full.state_dict(), strict=False)
    assert not missing.missing_keys and {key[:16] for key in missing.unexpected_keys} == {
        "network.blocks.5",
        "network.blocks.6",
    }
    image = torch.randn(1, 3, 64, 64)
    expected, features = full.eval()(image), part.train()(image)
    sum(feature.sum() for feature in features.values()).backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    features = part.eval()(image)
    assert set(features) == {"res2", "res4"}
    part.load_state_dict(full.state_dict(), strict=False)
    for name, feature in part(image).items():
        assert torch.equal(feature, expected[name])
