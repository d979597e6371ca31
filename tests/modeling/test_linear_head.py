"""The linear head of DINOv2 and DINOv3, and all methods on it and on UPerNet."""

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import SemanticSegmentor, build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.regularizers import REGULARIZER
from regseg_d2.segmentor.export import inference_model
from regseg_d2.segmentor.places import find_place
from tests.helpers import NUM_CLASSES, small_batch
from tests.modeling.dino_networks import KINDS, dino_cfg, options
from tests.modeling.timm_networks import randomise

METHODS = sorted(name for name, _ in REGULARIZER)
NETWORKS = [(kind, head) for kind in KINDS for head in ("linear", "four", "upernet")]


def build(kind, head, regularizers=(), **overrides):
    torch.manual_seed(1)
    cfg = dino_cfg(kind, head, regularizers, **overrides)
    # So many of the channels would make most of a test's time.
    cfg.merge_from_list(
        ["MODEL.REGULARIZERS.RegionContrast.BANK_SIZE", 4, "MODEL.REGULARIZERS.PNE.NUM_SAMPLES", 3]
    )
    return build_model(cfg), cfg


def plain_logits(model, kind, images, depth, blocks):
    """Logits of the plain network: timm's whole one, ``F.batch_norm``, ``F.conv2d``."""
    name, patch, prefix = KINDS[kind]
    network = timm.create_model(name, dynamic_img_size=True, **options(kind, depth=depth)).eval()
    missing = network.load_state_dict(model.backbone.network.model.state_dict(), strict=False)
    assert all(key.startswith("head.") for key in missing.missing_keys) and not missing.unexpected_keys
    outputs = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network.forward_features(images)
    size = (images.shape[-2] // patch, images.shape[-1] // patch)
    maps = [network.norm(outputs[block])[:, prefix:].transpose(1, 2).unflatten(2, size) for block in blocks]
    head, norm = model.sem_seg_head, model.sem_seg_head.projection.norm
    statistics = (None, None) if model.training else (norm.running_mean, norm.running_var)
    x = F.batch_norm(
        torch.cat(maps, 1), *statistics, norm.weight, norm.bias, training=model.training, eps=norm.eps
    )
    return F.conv2d(x, head.predictor.weight, head.predictor.bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("head", "depth", "blocks"), [("linear", 2, [1]), ("four", 4, [0, 1, 2, 3])])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_linear_head_are_those_of_plain_layers(kind, head, depth, blocks, training):
    model = randomise(build(kind, head)[0]).train(training)
    images = torch.randn(2, 3, 3 * KINDS[kind][1], 5 * KINDS[kind][1])
    with torch.no_grad():
        expected = plain_logits(model, kind, images, depth, blocks)
        logits, side = model.sem_seg_head.layers(model.backbone(images))
    assert side == {} and logits.std() > 1e-2
    assert logits.shape == (2, NUM_CLASSES, 3, 5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_only_norm_and_classifier_learn():
    model, _ = build("dinov2", "linear")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = ("projection.norm", "predictor")
    assert learning == {f"sem_seg_head.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert model.sem_seg_head.predictor.weight.shape == (NUM_CLASSES, 32, 1, 1)


def test_a_norm_is_needed():
    with pytest.raises(ConfigError, match=r"SEM_SEG_HEAD.NORM is ''.*PROJECTION 'Norm'"):
        build("dinov2", "linear", SEM_SEG_HEAD__NORM="")


# ------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("head", "dropout", "tap", "encoder"),
    [
        ("linear", 0.0, "sem_seg_head.predictor:in", "backbone:out[res5]"),
        ("four", 0.1, "sem_seg_head.dropout:in", "sem_seg_head.fusion:out"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_methods_read_the_normalised_features(method, head, dropout, tap, encoder):
    model, cfg = build("dinov2", head, [method])
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = dropout
    model = build_model(cfg)
    place = find_place(cfg, model, method)
    assert place.feature_tap == tap
    assert place.channels == (32 if head == "linear" else 128)
    assert place.logits_tap == "sem_seg_head.predictor:out"
    assert find_place(cfg, model, method, "encoder output").feature_tap == encoder
    seen = {}
    layers = model.sem_seg_head
    layers.projection.register_forward_hook(lambda m, inputs, output: seen.update(normed=output))
    tapped = model.get_submodule(tap.removesuffix(":in"))
    tapped.register_forward_hook(lambda m, inputs, output: seen.update(tapped=inputs[0]))
    model(small_batch())
    assert torch.equal(seen["tapped"], seen["normed"])
    values = seen["tapped"].detach()
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(place.channels), rtol=0, atol=1e-4)


def test_methods_read_what_upernet_classifies():
    model, cfg = build("dinov3", "upernet", ["ContrastSeg", "RCH"])
    assert find_place(cfg, model, "ContrastSeg").feature_tap == "sem_seg_head.dropout:in"
    assert find_place(cfg, model, "RCH", "encoder output").feature_tap == "backbone:out[res5]"


@pytest.mark.parametrize(("kind", "head"), NETWORKS)
def test_a_step_with_all_methods_and_evaluation_without_them(kind, head):
    model, cfg = build(kind, head, METHODS, BACKBONE__FREEZE_AT=0)
    if head != "upernet":
        cfg.MODEL.BACKBONE.FREEZE_AT = 5
        model = build_model(cfg)
    model(small_batch(seed=7))  # so that memories are not empty
    losses = model(small_batch())
    declared = {key for regularizer in model.regularizers.values() for key in regularizer.loss_keys}
    assert len(model.regularizers) == len(METHODS) >= 6 and declared < set(losses)
    assert sum(losses[key].item() > 0 for key in declared) >= len(declared) - 2
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert any(p.requires_grad for p in model.backbone.network.parameters()) == (head == "upernet")
    stripped = {key: v for key, v in model.state_dict().items() if not key.startswith("regularizers.")}
    plain = SemanticSegmentor(resolve_auto_norm(cfg))
    plain.load_state_dict(stripped, strict=True)
    for size in [(64, 64), (70, 50)]:
        batch = small_batch(1, size=size)
        ours, theirs = model.eval()(batch)[0]["sem_seg"], plain.eval()(batch)[0]["sem_seg"]
        assert torch.equal(ours, theirs) and ours.shape[-2:] == size


# ------------------------------------------------------------- CAR on a head that stays linear


def linear_car(**overrides):
    keys = {"SEM_SEG_HEAD__PROJECTION": "NormLinear", **overrides}
    torch.manual_seed(2)
    cfg = dino_cfg("dinov3", "linear", ["CAR"])
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    return build_model(cfg), cfg


@pytest.mark.parametrize("channels", [0, 8])
def test_car_reads_its_linear_convolution_and_export_leaves_the_linear_head(channels):
    model, cfg = linear_car(SEM_SEG_HEAD__LINEAR_CHANNELS=channels)
    place = find_place(cfg, model, "CAR", "linear convolution")
    assert (place.feature_tap, place.channels) == ("sem_seg_head.projection.linear:out", channels or 32)
    losses = model(small_batch())
    sum(value for key, value in losses.items() if "car" in key).backward()
    assert model.sem_seg_head.projection.linear.weight.grad.abs().sum() > 0
    randomise(model)
    batch = small_batch(1, size=(70, 50))
    exported = inference_model(model)
    expected = model.eval()(batch)[0]["sem_seg"]
    torch.testing.assert_close(exported(batch)[0]["sem_seg"], expected, rtol=1e-4, atol=1e-4)
    assert not any(module.training for module in exported.sem_seg_head.modules())
    baseline, _ = build("dinov3", "linear")
    baseline.load_state_dict(exported.state_dict(), strict=True)
    result = baseline.eval()(batch)[0]["sem_seg"]
    assert torch.equal(result, exported(batch)[0]["sem_seg"])
