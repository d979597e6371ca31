"""DeepLabV3+ and Semantic FPN: mmsegmentation's tensors and logits, from a file that MODEL.WEIGHTS is."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg import head_rules
from regseg_d2.weights.mmseg_kinds import describe_head
from regseg_d2.weights.network import Network
from regseg_d2.weights.sources import by_rules
from tests.weights.published_helpers import FIXTURES, HEAD, make_cfg

PREFIX = "sem_seg_head."
KEYS = {
    "deeplabv3plus": {
        "IN_FEATURES": ["res2", "res5"],
        "CONTEXT": "ASPP",
        "USE_DEPTHWISE_SEPARABLE_CONV": True,
        "ASPP_DILATIONS": [2, 3, 4],
        "ASPP_DROPOUT": 0.0,
        "ASPP_NARROW_KERNEL_SIZE": 3,
        "ASPP_POOLING_NORM": True,
        "PROJECT_CHANNELS": [3],
        "SKIP_SEPARABLE": True,
        "PROJECTION": "SeparableConvBlock",
    },
    "semantic_fpn": {
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "FUSION": "SemanticFPN",
        "FPN_CHANNELS": 6,
        "CONTEXT": "FCN",
        "FCN_NUM_CONVS": 0,
        "PROJECTION": "",
    },
}
STRIDES = {"deeplabv3plus": (4, 8, 8, 8), "semantic_fpn": (4, 8, 16, 32)}


def load(name, **changes):
    """The fixture, and our head with its tensors."""
    fixture = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    keys = {**KEYS[name], "CONTEXT_CHANNELS": 8, "CONVS_DIM": 8, "NUM_CLASSES": 7, "NORM": "BN", **changes}
    cfg = resolve_auto_norm(make_cfg({f"{HEAD}{key}": value for key, value in keys.items()}))
    shapes = {
        f"res{i + 2}": ShapeSpec(channels=feature.shape[1], stride=stride)
        for i, (feature, stride) in enumerate(zip(fixture["features"], STRIDES[name], strict=True))
    }
    head = ContextHead(cfg, shapes).eval()
    network = Network(cfg, {PREFIX + key: value.shape for key, value in head.state_dict().items()})
    renamed, unknown = by_rules(fixture["state"], head_rules(fixture["state"], network), network)
    assert unknown == {}
    head.load_state_dict({key.removeprefix(PREFIX): value for key, value in renamed.items()}, strict=True)
    return fixture, head


@torch.no_grad()
def deviation(fixture, head):
    features = {f"res{i + 2}": feature for i, feature in enumerate(fixture["features"])}
    logits, _ = head.layers(features)
    assert logits.shape == fixture["logits"].shape
    return ((logits - fixture["logits"]).abs().max() / fixture["logits"].std()).item()


@pytest.mark.parametrize("name", KEYS)
def test_logits_are_mmsegmentations(name):
    fixture, head = load(name)
    assert fixture["logits"].std() > 0.1
    assert deviation(fixture, head) < 1e-5


@torch.no_grad()
def test_the_order_of_what_the_skip_joins_matters():
    fixture, head = load("deeplabv3plus")
    skip, theirs = head.skips[0].fuse, "decode_head.sep_bottleneck.0."
    for weight, name in ((skip.depthwise.weight, "depthwise"), (skip.pointwise.weight, "pointwise")):
        kept = weight.clone()
        weight.copy_(fixture["state"][f"{theirs}{name}_conv.conv.weight"])
        assert deviation(fixture, head) > 0.1
        weight.copy_(kept)
    skip.depthwise.norm.running_mean.copy_(fixture["state"][f"{theirs}depthwise_conv.bn.running_mean"])
    assert deviation(fixture, head) > 0.01


def test_every_dilated_branch_is_separable_and_the_pooling_has_a_norm():
    fixture, head = load("deeplabv3plus")
    first, *dilated, pooling = head.context.aspp.convs
    assert [hasattr(branch, "depthwise") for branch in (first, *dilated)] == [False, True, True, True]
    assert pooling[1].norm is not None
    assert head.context.aspp.project.kernel_size == (3, 3)
    assert describe_head(fixture["state"]).endswith("deeplabv3plus_resnet50_mmseg.yaml")
