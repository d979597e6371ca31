"""Checkpoints of timm, HRNet's authors, SegFormer's authors and Detectron2."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.common.errors import CheckpointError
from tests.weights.published_helpers import (
    COMMON,
    FIXTURES,
    HEAD,
    IMAGE,
    NONE,
    PLAIN_FCN,
    RESNET,
    TIMM,
    TORCHVISION,
    assert_same_weights,
    check_both_ways,
    load_converted,
    load_directly,
    logits_of,
    make_cfg,
    randomize,
    save,
)

# ----------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit", "test_resnet"])
def test_timms_networks(name, tmp_path):
    theirs = randomize(timm.create_model(name, num_classes=3))
    path = save({"state_dict": theirs.state_dict(), "epoch": 1}, tmp_path / "theirs.pth")
    features = ["res5"] if name != "test_vit" else ["res4", "res5"]
    keys = {**TIMM, **PLAIN_FCN, "MODEL.TIMM.NAME": name, "MODEL.TIMM.OUT_FEATURES": features}
    model, text = load_converted(keys, path, "timm", tmp_path)
    assert "Backbone: 100.0%" in text
    directly = load_directly(keys, path)
    saved = theirs.state_dict()
    prefix = re.compile(r"^(model\.)?")
    assert len(model.backbone.network.state_dict()) > 10
    for ours, value in model.backbone.network.state_dict().items():
        key = prefix.sub("", ours)
        matches = [k for k in saved if k.replace("_", ".") == key.replace("_", ".")]
        assert torch.equal(value, saved[matches[0]]), ours
        assert torch.equal(value, directly.backbone.network.state_dict()[ours]), ours


def test_what_timms_networks_read(tmp_path):
    theirs = timm.create_model("tf_efficientnet_lite0")
    path = save(theirs.state_dict(), tmp_path / "theirs.pth")
    _, text = load_converted({**TIMM, **PLAIN_FCN}, path, "timm", tmp_path)
    assert "Warning: The images" in text
    assert "MODEL.PIXEL_MEAN [127.5, 127.5, 127.5], MODEL.PIXEL_STD [127.5, 127.5, 127.5]" in text
    keys = {**TIMM, **PLAIN_FCN, "MODEL.PIXEL_MEAN": [127.0] * 3, "MODEL.PIXEL_STD": [128.0] * 3}
    assert "Warning" not in load_converted(keys, path, "timm", tmp_path)[1]
    with pytest.raises(CheckpointError, match="need MODEL.BACKBONE.NAME build_timm_backbone"):
        load_converted({**RESNET, **PLAIN_FCN}, path, "timm", tmp_path)


# ---------------------------------------------------------------------------------------------- HRNet

HRNET_OPTIONS = (
    "{stage1: {num_modules: 1, num_branches: 1, block_type: BOTTLENECK, num_blocks: [1], num_channels: [2], "
    "fuse_method: SUM}, stage2: {num_modules: 1, num_branches: 2, block_type: BASIC, num_blocks: [1, 1], "
    "num_channels: [2, 4], fuse_method: SUM}, stage3: {num_modules: 1, num_branches: 3, block_type: BASIC, "
    "num_blocks: [1, 1, 1], num_channels: [2, 4, 6], fuse_method: SUM}, stage4: {num_modules: 1, "
    "num_branches: 4, block_type: BASIC, num_blocks: [1, 1, 1, 1], num_channels: [2, 4, 6, 8], "
    "fuse_method: SUM}}"
)
HRNET = {
    **TIMM,
    "MODEL.TIMM.NAME": "hrnet_w18",
    "MODEL.TIMM.OPTIONS": HRNET_OPTIONS,
    "MODEL.TIMM.CONVENTION": "mmseg",
    f"{HEAD}IN_FEATURES": ["res2", "res3", "res4", "res5"],
    f"{HEAD}FUSION": "Concat",
    f"{HEAD}PROJECTION": "",
}


def authors_backbone(prefix):
    state = torch.load(FIXTURES / "hrnet_thin.pt", weights_only=True)["state"]
    return {prefix + name.removeprefix("backbone."): value for name, value in state.items()}


def block(in_channels, out_channels, kernel_size=1, bias=False):
    """The authors' convolution, and their norm with its ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    return [conv, nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU())]


def test_hrnets_authors_segmentation(tmp_path):
    head = randomize(nn.Sequential(nn.Conv2d(20, 20, 1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 7, 1)))
    state = authors_backbone("model.")
    state |= {f"model.last_layer.{name}": value for name, value in head.state_dict().items()}
    path = save({**state, "loss.criterion.weight": torch.ones(7)}, tmp_path / "theirs.pth")
    fcn = {f"{HEAD}CONTEXT": "FCN", f"{HEAD}FCN_KERNEL_SIZE": 1, f"{HEAD}CONTEXT_CHANNELS": 20}
    model, _ = check_both_ways({**HRNET, **fcn}, path, "hrnet", tmp_path)
    with torch.no_grad():
        features = list(model.backbone(IMAGE).values())
        expected = head(model.sem_seg_head.fusion(features))
    torch.testing.assert_close(logits_of(model, IMAGE), expected, rtol=1e-5, atol=1e-5)


class AuthorsOCR(nn.Module):
    """OCR as its authors name and compute it (Yuan et al., ECCV 2020), on one feature."""

    def __init__(self, channels=20, width=12, key=6, classes=7):
        super().__init__()
        self.aux_head = nn.Sequential(*block(channels, channels, bias=True), nn.Conv2d(channels, classes, 1))
        self.conv3x3_ocr = nn.Sequential(*block(channels, width, 3, bias=True))
        self.ocr_distri_head = nn.Module()
        attention = self.ocr_distri_head.object_context_block = nn.Module()
        attention.f_pixel = nn.Sequential(*block(width, key), *block(key, key))
        attention.f_object = nn.Sequential(*block(width, key), *block(key, key))
        attention.f_down = nn.Sequential(*block(width, key))
        attention.f_up = nn.Sequential(*block(key, width))
        self.ocr_distri_head.conv_bn_dropout = nn.Sequential(*block(2 * width, width))
        self.cls_head = nn.Conv2d(width, classes, 1)

    def forward(self, feats):
        coarse, x = self.aux_head(feats), self.conv3x3_ocr(feats)
        regions = torch.einsum("nkp,ncp->nck", coarse.flatten(2).softmax(2), x.flatten(2))[..., None]
        attention = self.ocr_distri_head.object_context_block
        query, key = attention.f_pixel(x).flatten(2), attention.f_object(regions).flatten(2)
        relation = torch.einsum("ncp,nck->npk", query, key) * key.shape[1] ** -0.5
        context = torch.einsum("npk,nck->ncp", relation.softmax(2), attention.f_down(regions).flatten(2))
        context = attention.f_up(context.unflatten(2, x.shape[2:]))
        return self.cls_head(self.ocr_distri_head.conv_bn_dropout(torch.cat([context, x], 1)))


def test_hrnets_authors_ocr(tmp_path):
    head = randomize(AuthorsOCR())
    state = {**authors_backbone(""), **head.state_dict()}
    ocr = {
        f"{HEAD}CONTEXT": "OCR",
        f"{HEAD}CONTEXT_CHANNELS": 12,
        f"{HEAD}OCR_KEY_CHANNELS": 6,
        f"{HEAD}AUX.IN_FEATURE": "fused",
        f"{HEAD}AUX.CHANNELS": 0,
        f"{HEAD}AUX.KERNEL_SIZE": 1,
    }
    path = save(state, tmp_path / "theirs.pth")
    model, text = check_both_ways({**HRNET, **ocr}, path, "hrnet", tmp_path)
    assert "of HRNet's authors expect" in text
    with torch.no_grad():
        features = list(model.backbone(IMAGE).values())
        expected = head(model.sem_seg_head.fusion(features))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits_of(model, IMAGE), expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ SegFormer


# Our names and the authors', where stages count from 1.
MIT_NAMES = {
    r"embed\.conv\.(\w+)": r"patch_embed{}.proj.\1",
    r"embed\.norm\.(\w+)": r"patch_embed{}.norm.\1",
    r"norm\.(\w+)": r"norm{}.\1",
    r"blocks\.(\d+)\.(norm\d\.\w+)": r"block{}.\1.\2",
    r"blocks\.(\d+)\.attention\.out\.(\w+)": r"block{}.\1.attn.proj.\2",
    r"blocks\.(\d+)\.attention\.reduce\.(\w+)": r"block{}.\1.attn.sr.\2",
    r"blocks\.(\d+)\.attention\.reduce_norm\.(\w+)": r"block{}.\1.attn.norm.\2",
    r"blocks\.(\d+)\.mlp\.expand\.(\w+)": r"block{}.\1.mlp.fc1.\2",
    r"blocks\.(\d+)\.mlp\.mix\.(\w+)": r"block{}.\1.mlp.dwconv.dwconv.\2",
    r"blocks\.(\d+)\.mlp\.narrow\.(\w+)": r"block{}.\1.mlp.fc2.\2",
}


def authors_encoder(state):
    """Tensors of our encoder as SegFormer's authors name and split them."""
    official = {"head.weight": torch.zeros(10, 32)}
    for name, value in state.items():
        stage, _, rest = name.removeprefix("stages.").partition(".")
        if match := re.fullmatch(r"blocks\.(\d+)\.attention\.qkv\.(\w+)", rest):
            prefix, third = f"block{int(stage) + 1}.{match[1]}.attn", len(value) // 3
            official[f"{prefix}.q.{match[2]}"] = value[:third]
            official[f"{prefix}.kv.{match[2]}"] = value[third:]
            continue
        theirs = next(p for p in MIT_NAMES if re.fullmatch(p, rest))
        linear = bool(re.fullmatch(r".*mlp\.(expand|narrow)\.weight", rest))
        name = re.sub(theirs, MIT_NAMES[theirs].format(int(stage) + 1), rest)
        official[name] = value[:, :, 0, 0] if linear else value
    return official


def test_segformers_authors_encoder(tmp_path):
    keys = {
        **COMMON,
        **PLAIN_FCN,
        "MODEL.BACKBONE.NAME": "build_mit_backbone",
        "MODEL.MIT.EMBED_DIMS": [4, 8, 20, 32],
        "MODEL.MIT.NUM_LAYERS": [2, 1, 1, 1],
    }
    source = build_model(make_cfg(keys)).backbone
    official = authors_encoder(source.state_dict())
    path = save({"state_dict": official}, tmp_path / "mit.pth")
    model, text = load_converted(keys, path, "segformer", tmp_path)
    assert "Backbone: 100.0%" in text
    assert "head: weight (10, 32)" in text
    directly = load_directly(keys, path)
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
        assert torch.equal(directly.backbone.state_dict()[name], value), name
    del official["block1.0.attn.kv.weight"]
    with pytest.raises(CheckpointError, match="The encoder is not whole: .*block1.0.attn.q.weight"):
        load_directly(keys, save(official, path))
    with pytest.raises(CheckpointError, match="SegFormer's encoders need MODEL.BACKBONE.NAME"):
        load_directly({**RESNET, **PLAIN_FCN}, path)


# ----------------------------------------------------------------------------------------- Detectron2


def caffe2_name(name):
    """The name that Caffe2's ResNets have for one of Detectron2's tensors, without statistics."""
    name = name.replace("stem.conv1.norm.", "res_conv1_bn.").replace("stem.conv1.", "conv1.")
    name = re.sub(r"\.conv([123])\.", lambda m: f"_branch2{'abc'[int(m[1]) - 1]}.", name)
    name = name.replace(".shortcut.", "_branch1.").replace(".norm.", "_bn.")
    name = re.sub(r"_bn\.weight$", "_bn_s", name)
    return re.sub(r"\.weight$", "_w", re.sub(r"\.bias$", "_b", name)).replace(".", "_")


@pytest.mark.parametrize("head", ["ContextHead", "SemSegFPNHead"])
def test_detectron2s_imagenet_weights(head, tmp_path):
    keys = {**TORCHVISION, **PLAIN_FCN, **NONE}
    if head == "SemSegFPNHead":
        keys |= {
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
            "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.OUT_CHANNELS": 8,
            f"{HEAD}NAME": head,
            f"{HEAD}IN_FEATURES": ["p2", "p3", "p4", "p5"],
        }
    source = randomize(build_model(make_cfg({**TORCHVISION, **PLAIN_FCN, **NONE})).backbone)
    arrays = {
        caffe2_name(name): value.numpy()
        for name, value in source.state_dict().items()
        if not re.search("running|num_batches", name)
    }
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_bn_b", "res5_0_branch1_w"} <= set(arrays)
    path = tmp_path / "R-50.pkl"
    momentum = {"conv1_w_momentum": np.zeros(3, np.float32), "fc1000_w": np.zeros((3, 2), np.float32)}
    path.write_bytes(pickle.dumps({"blobs": {**arrays, **momentum}}, protocol=2))
    model, text = load_converted(keys, path, "detectron2", tmp_path)
    ours = getattr(model.backbone, "bottom_up", model.backbone)
    for name, value in source.state_dict().items():
        if "running_mean" in name:
            value = torch.zeros_like(value)
        elif "running_var" in name:
            value = torch.ones_like(value) - 1e-5
        assert torch.equal(ours.state_dict()[name], value) or "num_batches" in name, name
    assert "Warning" in text
    assert "INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [103.53, 116.28, 123.675], MODEL.PIXEL_STD [1, 1, 1]" in text
    directly = load_directly(keys, path).backbone
    for name, value in model.backbone.state_dict().items():
        assert "fpn" in name or torch.equal(value, directly.state_dict()[name]), name


def test_detectron2s_weights_that_come_from_torchvision(tmp_path):
    keys = {**TORCHVISION, **PLAIN_FCN, **NONE}
    source = randomize(build_model(make_cfg(keys)).backbone)
    arrays = {name: value.numpy() for name, value in source.state_dict().items() if "num_b" not in name}
    path = tmp_path / "R-50.pkl"
    zoo = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(zoo))
    model, text = load_converted(keys, path, "detectron2", tmp_path)
    assert "Warning" not in text
    directly = load_directly(keys, path)
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
        assert torch.equal(directly.backbone.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="ResNets of Detectron2 need.*build_dilated_resnet_backbone"):
        load_converted({**TIMM, **PLAIN_FCN}, path, "detectron2", tmp_path)


@pytest.mark.parametrize("name", ["DeepLabV3Head", "DeepLabV3PlusHead"])
def test_detectron2s_deeplab_in_our_head(name, tmp_path):
    common = {
        **RESNET,
        **NONE,
        "INPUT.CROP.ENABLED": False,
        f"{HEAD}IN_FEATURES": ["res5"] if name == "DeepLabV3Head" else ["res2", "res5"],
        f"{HEAD}PROJECT_CHANNELS": [4],
        f"{HEAD}ASPP_DILATIONS": [2, 3, 4],
        f"{HEAD}ASPP_CHANNELS": 8,
        f"{HEAD}CONTEXT_CHANNELS": 8,
        f"{HEAD}CONVS_DIM": 8,
    }
    theirs = randomize(build_model(make_cfg({**common, f"{HEAD}NAME": name})))
    path = save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = {**common, f"{HEAD}CONTEXT": "ASPP", f"{HEAD}PROJECTION": ""}
    if name == "DeepLabV3PlusHead":
        ours[f"{HEAD}PROJECTION"] = "ConvBlock"
    model, _ = check_both_ways(ours, path, "detectron2", tmp_path)
    with torch.no_grad():
        features, head = theirs.backbone(IMAGE), theirs.sem_seg_head
        if name == "DeepLabV3Head":
            expected = head.predictor(head.aspp(features["res5"]))
        else:
            expected = head.layers(features)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits_of(model, IMAGE), expected, rtol=1e-5, atol=1e-5)
    # Into the head that it comes from it goes as it is.
    assert_same_weights(theirs, load_directly({**common, f"{HEAD}NAME": name}, path))
