"""Where the feature of a regularizer is taken: at the encoder's output, before the classifier's dropout."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn

from regseg_d2.config.files import load_config
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.regularizers.recorder import TapRecorder, tap_channels
from regseg_d2.regularizers.taps import DROPOUTS
from regseg_d2.segmentor.places import encoder_output_tap, find_place, penultimate_tap
from tests.helpers import HEADS, small_batch, small_cfg


def resnet_cfg(name, **keys):
    cfg = small_cfg("FCN")
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    return cfg


ENCODERS = {
    "Detectron2's ResNet": (resnet_cfg("build_resnet_backbone"), "backbone:out[res5]", 128, 32),
    "its first stages": (
        resnet_cfg("build_resnet_backbone", RESNETS__OUT_FEATURES=["res4", "res2"]),
        "backbone:out[res4]",
        64,
        16,
    ),
    "dilated: two of one stride": (
        resnet_cfg("build_dilated_resnet_backbone", RESNETS__STEM_TYPE="deeplab"),
        "backbone:out[res5]",
        128,
        8,
    ),
    "before the pyramid": (resnet_cfg("build_resnet_fpn_backbone"), "backbone.bottom_up:out[res5]", 128, 32),
    "timm": (small_cfg("FCN"), "backbone:out[res4]", 256, 16),
    "timm, dilated": (
        small_cfg(
            "FCN",
            TIMM__NAME="tf_efficientnet_lite0",
            TIMM__OUTPUT_STRIDE=16,
            TIMM__OUT_FEATURES=["res4", "res5"],
        ),
        "backbone:out[res5]",
        320,
        16,
    ),
}


def test_side_by_side_stages_are_the_encoders_output():
    """SegFormer hands all stages to its head; UPerNet's pyramid mixes them."""
    for fusion, expected in {
        "MLPFusion": "sem_seg_head.fusion:out",
        "Concat": "sem_seg_head.fusion:out",
        "UPerFPN": "backbone:out[res4]",
    }.items():
        cfg = small_cfg(
            "FCN", ["RCH"], SEM_SEG_HEAD__FUSION=fusion, SEM_SEG_HEAD__IN_FEATURES=["res2", "res4"]
        )
        assert build_model(cfg).regularizers["RCH"].feature_tap == expected, fusion
    cfg.MODEL.SEM_SEG_HEAD.FUSION = "JPU"
    assert build_model(cfg).regularizers["RCH"].feature_tap == "backbone:out[res4]"
    cfg.MODEL.REGULARIZERS.RCH.FEATURES = "backbone:out[res4]"
    cfg.MODEL.SEM_SEG_HEAD.FUSION = "MLPFusion"
    assert build_model(cfg).regularizers["RCH"].feature_tap == "backbone:out[res4]"


def test_all_stages_learn_from_rch():
    """At the size of the logits, so that no pixel of theirs is passed over."""
    fusion = {"SEM_SEG_HEAD__FUSION": "MLPFusion", "SEM_SEG_HEAD__IN_FEATURES": ["res2", "res4"]}
    model = build_model(small_cfg("FCN", ["RCH"], **fusion)).train()
    rch = model.regularizers["RCH"]
    with TapRecorder(model, rch.taps).record(model) as taps:
        losses = model(small_batch())
    assert taps[rch.feature_tap].shape[-2:] == taps[rch.logits_tap].shape[-2:] == (16, 16)
    losses["loss_rch_metric"].backward()
    for embed in model.sem_seg_head.fusion.embeds:
        assert embed.weight.grad.abs().sum() > 0
    assert model.sem_seg_head.projection.conv.weight.grad is None


@pytest.mark.parametrize(
    ("config", "tap"),
    [
        ("cityscapes/segformer_mit_b0_rch", "sem_seg_head.fusion:out"),
        ("cityscapes/fcn_hrnet_w48_rch", "sem_seg_head.fusion:out"),
        ("cityscapes/deeplabv3_resnet101_rch", "backbone:out[res5]"),
    ],
)
def test_the_encoders_output_of_the_papers_networks(config, tap):
    cfg = load_config(f"configs/{config}.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.MODEL.REGULARIZERS.RCH.FEATURES = "auto"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "resnet10t"
    cfg.MODEL.TIMM.OUT_FEATURES, cfg.MODEL.TIMM.PRETRAINED = ["res2", "res3", "res4", "res5"], ""
    assert build_model(cfg).regularizers["RCH"].feature_tap == tap


LAST_ASPP = {"SEM_SEG_HEAD__IN_FEATURES": ["res4"], "SEM_SEG_HEAD__PROJECTION": ""}
WIDE = {"SEM_SEG_HEAD__ASPP_NARROW": False}


@pytest.mark.parametrize(
    ("head", "keys", "tap"),
    [
        ("FCN", {}, "sem_seg_head.dropout:in"),
        ("FCN", {"SEM_SEG_HEAD__DROPOUT": 0.0}, "sem_seg_head.predictor:in"),
        ("DeepLabV3", {"SEM_SEG_HEAD__ASPP_DROPOUT": 0.1}, "sem_seg_head.aspp.project:out"),
        ("DeepLabV3", {"SEM_SEG_HEAD__ASPP_DROPOUT": 0.0}, "sem_seg_head.predictor:in"),
        ("DeepLabV3Plus", {"SEM_SEG_HEAD__ASPP_DROPOUT": 0.1}, "sem_seg_head.predictor:in"),
        ("SemSegFPN", {}, "sem_seg_head.predictor:in"),
        ("ASPP", {}, "sem_seg_head.dropout:in"),
        ("ASPP", LAST_ASPP, "sem_seg_head.context.aspp.project:out"),
        ("ASPP", LAST_ASPP | WIDE, "sem_seg_head.context.aspp.project:out"),
        ("ASPP", LAST_ASPP | {"SEM_SEG_HEAD__ASPP_DROPOUT": 0.0}, "sem_seg_head.dropout:in"),
    ],
)
def test_the_feature_is_taken_before_the_dropout(head, keys, tap):
    model = build_model(small_cfg(head, ["PNE"], **keys))
    assert model.regularizers["PNE"].feature_tap == tap
    behind = build_model(
        small_cfg(head, ["PNE"], REGULARIZERS__PNE__FEATURES="sem_seg_head.predictor:in", **keys)
    )
    assert behind.regularizers["PNE"].feature_tap == "sem_seg_head.predictor:in"
    model.train()
    recorder = TapRecorder(model, [tap, "sem_seg_head.predictor:in"])
    with recorder.record(model) as taps:
        losses = model(small_batch())
    assert torch.isfinite(losses["loss_pne_contrast"])
    before, after = taps[tap], taps["sem_seg_head.predictor:in"]
    kept = after != 0
    torch.testing.assert_close(
        (after / before)[kept], torch.ones_like(after[kept]) * after[kept].max() / before[kept].max()
    )


@pytest.mark.parametrize(
    ("head", "classifier"),
    [
        *((name, "sem_seg_head.predictor") for name in HEADS),
        ("FCN-linear", "sem_seg_head.auxiliary.predictor"),
    ],
)
def test_no_dropout_module_feeds_a_classifier_unseen(head, classifier):
    """What the modules hand to each other says the same as the tap."""
    # Detectron2's ASPP has a functional one.
    model = build_model(small_cfg(head, SEM_SEG_HEAD__ASPP_DROPOUT=0.0)).train()
    outputs = {}
    for path, module in model.named_modules():
        if isinstance(module, DROPOUTS) and module.p > 0:
            module.register_forward_hook(lambda _, args, out, path=path: outputs.update({path: out}))
    with TapRecorder(model, [f"{classifier}:in"]).record(model) as taps:
        model(small_batch())
    feeding = [path for path, output in outputs.items() if output is taps[f"{classifier}:in"]]
    expected = f"{feeding[0]}:in" if feeding else f"{classifier}:in"
    assert penultimate_tap(model, classifier) == expected
    assert bool(feeding) == (HEADS[head]["NAME"] == "ContextHead")


@pytest.mark.parametrize(
    ("head", "keys"), [("FCN", {}), ("DeepLabV3", {}), ("ASPP", LAST_ASPP), ("ASPP", LAST_ASPP | WIDE)]
)
def test_two_views_of_a_pixel_are_the_same_before_the_dropout(head, keys):
    model = build_model(small_cfg(head, SEM_SEG_HEAD__ASPP_DROPOUT=0.1, **keys)).train()
    before, behind = penultimate_tap(model, "sem_seg_head.predictor"), "sem_seg_head.predictor:in"
    views = []
    for _ in range(2):
        with TapRecorder(model, [before, behind]).record(model) as taps:
            model(small_batch())
        views.append(taps)
    assert torch.equal(views[0][before], views[1][before])
    assert torch.cosine_similarity(views[0][behind], views[1][behind]).mean() < 0.95


def test_a_dropout_before_a_classifier_in_a_sequence():
    """As torchvision's heads are written."""
    parts = [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Dropout(0.5), nn.Identity(), nn.Conv2d(6, 3, 1)]
    network = nn.ModuleDict({"head": nn.Sequential(*parts)})
    assert penultimate_tap(network, "head.4") == "head.2:in"
    parts[2].p = 0.0
    assert penultimate_tap(network, "head.4") == "head.4:in"
    assert penultimate_tap(network, "head.0") == "head.0:in"
    network = nn.ModuleDict({"head": nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1))})
    assert penultimate_tap(network, "head.2") == "head.2:in"
    cfg = small_cfg("FCN", REGULARIZERS__PNE__CLASSIFIER="head.1")
    place = find_place(cfg, network, "PNE", reads_logits=False)
    assert (place.feature_tap, place.channels, place.logits_tap) == ("head.0:in", 4, "head.1:out")


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_the_input_of_a_dropout_can_be_named(ratio):
    tap = "sem_seg_head.dropout:in"
    cfg = small_cfg("FCN", ["PNE"], SEM_SEG_HEAD__DROPOUT=ratio, REGULARIZERS__PNE__FEATURES=tap)
    model = build_model(cfg)
    assert model.regularizers["PNE"].feature_tap == tap
    assert torch.isfinite(model(small_batch())["loss_pne_contrast"])


def test_without_a_dropout_module_the_classifiers_input_is_taken():
    model = build_model(small_cfg("FCN"))
    model.sem_seg_head.dropout = nn.Identity()
    assert penultimate_tap(model, "sem_seg_head.predictor") == "sem_seg_head.predictor:in"


@pytest.mark.parametrize("case", ENCODERS)
def test_the_encoders_last_feature(case):
    cfg, tap, channels, stride = ENCODERS[case]
    network = nn.ModuleDict({"backbone": build_backbone(resolve_auto_norm(cfg))})
    assert encoder_output_tap(network) == tap
    assert tap_channels(network, tap, "key") == channels
    path, _, entry = tap.removesuffix("]").partition(":out[")
    features = network.get_submodule(path)(torch.zeros(1, 3, 64, 64))
    assert features[entry].shape[1:] == (channels, 64 // stride, 64 // stride)
