"""Every head of this package x two backbones, with all regularizers at once: the same promises."""

import pytest
import torch
from detectron2.modeling import SemanticSegmentor, build_model

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE, FUSION
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.regularizers import REGULARIZER
from tests.helpers import small_batch, small_cfg

REGULARIZERS = sorted(name for name, _ in REGULARIZER)
BACKBONES = {
    "ResNet-18": {"TIMM__NAME": "resnet18", "TIMM__OUTPUT_STRIDE": 8},
    "EfficientNet-Lite0": {"TIMM__NAME": "tf_efficientnet_lite0", "TIMM__OUTPUT_STRIDE": 32},
}
ALL = ["res2", "res3", "res4", "res5"]
COARSE = {"AUX.IN_FEATURE": "res4"}
PASS = {"CONTEXT": "FCN", "FCN_NUM_CONVS": 0}
# Keys of MODEL.SEM_SEG_HEAD of each network that the papers use.
HEADS = {
    "FCN": {"CONTEXT": "FCN", "CONCAT_INPUT": True, **COARSE},
    "PSPNet": {"CONTEXT": "PPM", "PROJECTION": ""},
    "DeepLabV3": {"CONTEXT": "ASPP", "ASPP_NARROW": False},
    "DeepLabV3+": {"CONTEXT": "ASPP", "IN_FEATURES": ["res2", "res5"], "USE_DEPTHWISE_SEPARABLE_CONV": True},
    "separable DeepLabV3+": {
        "CONTEXT": "ASPP",
        "IN_FEATURES": ["res2", "res5"],
        "ASPP_NARROW_KERNEL_SIZE": 3,
        "ASPP_POOLING_NORM": True,
        "SKIP_SEPARABLE": True,
        "PROJECTION": "SeparableConvBlock",
    },
    "Semantic FPN": {
        "FUSION": "SemanticFPN",
        "IN_FEATURES": ALL,
        "FPN_CHANNELS": 8,
        "PROJECTION": "",
        **PASS,
    },
    "non-local": {"CONTEXT": "NonLocal", "CONCAT_INPUT": True},
    "self-attention": {"CONTEXT": "SelfAttention", "ATTENTION_KEY_CHANNELS": 8},
    "CCNet": {"CONTEXT": "CrissCross", "CONCAT_INPUT": True},
    "DANet": {"CONTEXT": "DualAttention", "DANET_KEY_CHANNELS": 8, "PROJECTION": ""},
    "CPNet": {"CONTEXT": "ContextPrior", "CPNET_SIZE": [4, 4], "CONCAT_INPUT": True},
    "OCRNet": {"CONTEXT": "OCR", "OCR_KEY_CHANNELS": 8, "PROJECTION": "", **COARSE},
    "UPerNet": {"FUSION": "UPerFPN", "IN_FEATURES": ALL, "PPM_POOL_SIZES": [1, 2], **PASS},
    "CAA": {"CONTEXT": "ChannelizedAxialAttention", "CAA_KEY_CHANNELS": 8},
    "EncNet": {"CONTEXT": "Encoding", "ENCNET_NUM_CODES": 4, "PROJECTION": ""},
    "SegFormer": {"FUSION": "MLPFusion", "IN_FEATURES": ALL, "PROJECTION_KERNEL_SIZE": 1, **PASS},
    "HRNet-FCN": {"FUSION": "Concat", "IN_FEATURES": ALL, "CONTEXT": "FCN", "FCN_KERNEL_SIZE": 1},
    "HRNet-OCR": {
        "FUSION": "Concat",
        "IN_FEATURES": ALL,
        "CONTEXT": "OCR",
        "OCR_KEY_CHANNELS": 8,
        "PROJECTION": "",
        "AUX.IN_FEATURE": "fused",
        "AUX.KERNEL_SIZE": 1,
    },
    "JPU": {"FUSION": "JPU", "IN_FEATURES": ALL[1:], "JPU_CHANNELS": 8, "CONTEXT": "Encoding"},
}
NETWORKS = [(head, backbone) for head in HEADS for backbone in BACKBONES]


def network_cfg(head, backbone, regularizers=REGULARIZERS):
    cfg = small_cfg("FCN", regularizers, **BACKBONES[backbone], TIMM__OUT_FEATURES=ALL)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    # So many of the backbones' channels would make most of a test's time.
    cfg.merge_from_list(
        ["MODEL.REGULARIZERS.RegionContrast.BANK_SIZE", 4, "MODEL.REGULARIZERS.PNE.NUM_SAMPLES", 3]
    )
    for key, value in HEADS[head].items():
        cfg.merge_from_list([f"MODEL.SEM_SEG_HEAD.{key}", value])
    return cfg


def build(head, backbone):
    torch.manual_seed(1)
    return build_model(network_cfg(head, backbone))


def test_every_fusion_and_context_is_in_the_battery():
    assert {keys.get("CONTEXT") for keys in HEADS.values()} == {name for name, _ in CONTEXT_MODULE}
    assert {keys["FUSION"] for keys in HEADS.values() if "FUSION" in keys} == {name for name, _ in FUSION}


@pytest.mark.parametrize(("head", "backbone"), NETWORKS)
def test_a_step_with_all_regularizers(head, backbone):
    model = build(head, backbone)
    model(small_batch(seed=7))  # so that memories are not empty
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(small_batch())
    declared = {key for regularizer in model.regularizers.values() for key in regularizer.loss_keys}
    assert declared < set(losses)
    for key, value in losses.items():
        assert value.shape == (), key
        assert torch.isfinite(value), key
    # One or the other may find nothing to do: an untrained classifier may have no class right.
    assert sum(losses[key].item() > 0 for key in declared) >= len(declared) - 2
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("head", "backbone"), NETWORKS)
@pytest.mark.parametrize("labels", ["void", "one_class"])
def test_degenerate_batches(head, backbone, labels):
    model = build(head, backbone)
    losses = model(small_batch(labels=labels))
    assert all(torch.isfinite(value) and value.requires_grad for value in losses.values())
    if labels == "void":
        assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("head", "backbone"), NETWORKS)
def test_evaluation_is_that_of_the_plain_segmentor_at_any_size(head, backbone):
    model = build(head, backbone)
    model(small_batch())
    stripped = {k: v for k, v in model.state_dict().items() if not k.startswith("regularizers.")}
    torch.manual_seed(2)
    plain = SemanticSegmentor(resolve_auto_norm(network_cfg(head, backbone)))
    plain.load_state_dict(stripped, strict=True)
    for size in [(64, 64), (70, 50)]:
        batch = small_batch(1, size=size)
        ours, theirs = model.eval()(batch), plain.eval()(batch)
        assert torch.equal(ours[0]["sem_seg"], theirs[0]["sem_seg"])
        assert ours[0]["sem_seg"].shape[-2:] == size
