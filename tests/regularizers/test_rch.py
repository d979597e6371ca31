"""RCH against the paper's equations as slow loops, over all options."""

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers import RCH, RegularizerInput
from regseg_d2.regularizers.projection import LinearProjection
from regseg_d2.segmentor.regularizers import build_regularizers
from tests.helpers import observed, small_cfg
from tests.references.rch import rch_loss

K, D, IGNORE = 5, 4, 255
TAP, LOGITS = "encoder:out", "head:out"


def make_rch(**options):
    """RCH whose embedding is the feature itself, in float64."""
    options = {"weights": {"metric": options.pop("weight", 1.0)}, "embedding_channels": D} | options
    rch = RCH(options.pop("num_classes", K), D, feature_tap=TAP, logits_tap=LOGITS, **options).double()
    rch.projection = nn.Identity()
    return rch


def make_inputs(seed=0, labels=None):
    """Of 5 classes 2 is in the second image only, 3 is never predicted, 4 is only predicted."""
    generator = torch.Generator().manual_seed(seed)
    feature = 2 * torch.randn(2, D, 3, 4, dtype=torch.float64, generator=generator)
    logits = torch.randn(2, K, 3, 4, dtype=torch.float64, generator=generator)
    if labels is None:
        labels = torch.randint(0, 2, (2, 3, 4), generator=generator)
        labels[1, 0] = 2
        labels[0, 2, :2] = 3
        labels[0, 1, :2] = IGNORE
    wrong = torch.rand(labels.shape, generator=generator) < 0.4
    random = torch.randint(0, 3, labels.shape, generator=generator)
    predicted = torch.where(wrong | (labels >= 3), random, labels)
    predicted[1, 1, 0] = 4
    logits.scatter_add_(1, predicted.unsqueeze(1), torch.full((2, 1, 3, 4), 2.0, dtype=torch.float64))
    logits[:, 3] -= 20
    feature.requires_grad_(True)
    return feature, logits, labels, RegularizerInput({TAP: feature, LOGITS: logits}, labels, K)


def assert_like_reference(rch, feature, logits, labels, inputs, **options):
    result = rch(inputs)["loss_rch_metric"]
    expected, prototypes = rch_loss(feature, logits, labels, IGNORE, **options)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)
    parameters = [feature, *rch.parameters()]
    gradients = torch.autograd.grad(result, parameters)
    expected_gradients = torch.autograd.grad(expected, parameters)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)
        assert expected_gradient.abs().sum() > 0
    return prototypes


SWITCHES = list(itertools.product((True, False), (True, False)))


@pytest.mark.parametrize("errors", ["image", "batch"])
@pytest.mark.parametrize(("fp_penalty", "fn_compensation"), SWITCHES)
@pytest.mark.parametrize(
    ("prototypes", "detach"), [("tp", False), ("tp", True), ("gt", False), ("gt", True), ("learned", False)]
)
def test_losses_and_gradients_follow_the_equations(prototypes, detach, fp_penalty, fn_compensation, errors):
    options = {
        "prototypes": prototypes,
        "detach_prototypes": detach,
        "fp_penalty": fp_penalty,
        "fn_compensation": fn_compensation,
        "errors": errors,
        "temperature": 0.3,
        "calibration_scale": 0.8,
    }
    torch.manual_seed(0)
    rch = make_rch(**options)
    learned = rch.learned if prototypes == "learned" else None
    assert_like_reference(rch, *make_inputs(), **options, learned=learned)


def test_the_paper_is_the_default():
    assert_like_reference(make_rch(), *make_inputs(seed=3))
    assert RCH(K).errors == "image"


def make_pair(errors):
    """Two images of classes 0 and 1; with ``errors`` the second takes a pixel of each for the other."""
    generator = torch.Generator().manual_seed(4)
    feature = torch.randn(2, D, 1, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 1, 1]]])
    predicted = labels.clone()
    if errors:
        predicted[1, 0] = torch.tensor([0, 1, 0, 1])
    logits = torch.zeros(2, K, 1, 4, dtype=torch.float64).scatter_(1, predicted.unsqueeze(1), 2.0)
    return feature, logits, labels, RegularizerInput({TAP: feature, LOGITS: logits}, labels, K)


def test_errors_of_one_image_calibrate_the_pixels_of_that_image_alone():
    steps = {}
    for errors in ("image", "batch"):
        rch = make_rch(errors=errors, prototypes="learned")
        steps[errors] = rch.losses(make_pair(errors=True)[3])[1]
    assert (steps["image"].phi[0] == 0).all()
    assert (steps["image"].psi[0] == 0).all()
    assert (steps["batch"].phi[0] > 0).all()
    assert (steps["batch"].psi[0] > 0).all()
    # Where only one image has errors, its own pixels meet the same ones either way.
    for term in ("phi", "psi"):
        own, pooled = (getattr(steps[errors], term)[1] for errors in ("image", "batch"))
        torch.testing.assert_close(own, pooled)
        assert (own != 0).any()


def test_without_errors_both_settings_are_the_plain_loss():
    losses = [
        make_rch(errors=errors)(make_pair(errors=False)[3])["loss_rch_metric"]
        for errors in ("image", "batch")
    ]
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize("errors", ["image", "batch"])
def test_static_shapes_as_on_a_gpu_give_the_same(monkeypatch, errors):
    def compact_without_a_shape_that_depends_on_data(mask):
        items = mask.logical_not().to(torch.uint8).argsort(stable=True)
        return items, mask[items]

    feature, _, _, inputs = make_inputs()
    expected = make_rch(errors=errors)(inputs)["loss_rch_metric"]
    monkeypatch.setattr("regseg_d2.regularizers.rch.compact", compact_without_a_shape_that_depends_on_data)
    loss = make_rch(errors=errors)(inputs)["loss_rch_metric"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, feature)[0] for value in (loss, expected)))


@pytest.mark.parametrize("prototypes", ["tp", "gt"])
@pytest.mark.parametrize("decay", [0.9, 0.6])
def test_moving_prototypes_over_several_steps(prototypes, decay):
    rch = make_rch(prototypes=prototypes, ema_decay=decay)
    stored = [None] * K
    for step in range(4):
        feature, logits, labels, inputs = make_inputs(seed=step)
        if step == 2:
            # A class goes, and keeps its prototype.
            labels[labels == 2] = 0
        options = {"prototypes": prototypes, "ema_decay": decay, "stored": stored}
        new = assert_like_reference(rch, feature, logits, labels, inputs, **options)
        stored = [None if center is None else center.detach() for center in new]
        for k, center in enumerate(stored):
            expected = torch.zeros(D, dtype=torch.float64) if center is None else center
            torch.testing.assert_close(rch.ema.centers[k], expected)
    assert rch.ema.seen.tolist() == [True, True, True, prototypes == "gt", False]
    assert rch.ema.counts[2] == 3


@pytest.mark.parametrize("errors", ["image", "batch"])
@pytest.mark.parametrize("prototypes", ["tp", "gt", "learned"])
def test_gradcheck(prototypes, errors):
    feature, logits, labels, _ = make_inputs()
    torch.manual_seed(0)
    rch = make_rch(prototypes=prototypes, errors=errors).eval()

    def total(x):
        return rch(RegularizerInput({TAP: x, LOGITS: logits}, labels, K))["loss_rch_metric"]

    assert torch.autograd.gradcheck(total, (feature,), eps=1e-6, atol=1e-7)


def test_no_gradient_to_the_logits():
    feature, logits, labels, _ = make_inputs()
    logits.requires_grad_(True)
    result = make_rch()(RegularizerInput({TAP: feature, LOGITS: logits}, labels, K))
    result["loss_rch_metric"].backward()
    assert logits.grad is None


def test_gradient_flows_through_this_batchs_share_of_the_prototypes():
    feature, logits, labels, inputs = make_inputs()
    rch = make_rch()
    (first,) = torch.autograd.grad(rch(inputs)["loss_rch_metric"], feature)
    rch.detach_prototypes = True
    rch.ema.counts.zero_()
    (detached,) = torch.autograd.grad(rch(inputs)["loss_rch_metric"], feature)
    assert (first - detached).norm() > 0.01 * detached.norm()


def test_logits_and_labels_of_another_size():
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(1, D, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    small = torch.randn(1, K, 2, 3, dtype=torch.float64, generator=generator)
    labels = small.argmax(1)
    labels[0, 0] = torch.tensor([0, 1, 2])
    expected, _ = rch_loss(feature, small, labels, IGNORE)
    # Blocks of 2x2: the bilinear mean of a block is the block, the label any of its pixels.
    big = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    targets = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    result = make_rch()(RegularizerInput({TAP: feature, LOGITS: big}, targets, K))
    torch.testing.assert_close(result["loss_rch_metric"], expected)


def test_the_weight_scales_the_loss():
    _, _, _, inputs = make_inputs()
    full = make_rch()(inputs)["loss_rch_metric"]
    torch.testing.assert_close(make_rch(weight=0.1)(inputs)["loss_rch_metric"], 0.1 * full)


def test_warm_up_without_loss_moves_the_prototypes():
    _, _, _, inputs = make_inputs()
    rch = make_rch(warmup_iters=2)
    assert [rch(inputs)["loss_rch_metric"].item() > 0 for _ in range(3)] == [False, False, True]
    assert rch.ema.counts[0] == 3


def test_labels_beyond_the_classes_are_void():
    feature, logits, labels, inputs = make_inputs()
    beyond = torch.where(labels == IGNORE, K + 3, labels)
    result = make_rch()(RegularizerInput({TAP: feature, LOGITS: logits}, beyond, K))
    torch.testing.assert_close(result, make_rch()(inputs))


@pytest.mark.parametrize("labels", ["void", "class_zero", "one_class"])
@pytest.mark.parametrize("predictions", ["right", "wrong"])
@pytest.mark.parametrize("prototypes", ["tp", "gt", "learned"])
@pytest.mark.parametrize("fresh", [True, False])
def test_degenerate_batches_are_finite_and_attached(labels, predictions, prototypes, fresh):
    torch.manual_seed(0)
    rch = make_rch(prototypes=prototypes)
    if not fresh:
        rch(make_inputs()[3])
    target = torch.full((2, 3, 4), {"void": IGNORE, "class_zero": 0, "one_class": 2}[labels])
    feature, logits, _, _ = make_inputs(labels=target)
    logits = torch.zeros_like(logits)
    if predictions == "right" and labels != "void":
        logits.scatter_(1, target.unsqueeze(1), 5.0)
    else:
        logits[:, 1] = 5.0
    result = rch(RegularizerInput({TAP: feature, LOGITS: logits}, target, K))["loss_rch_metric"]
    (gradient,) = torch.autograd.grad(result, feature)
    assert torch.isfinite(result)
    assert torch.isfinite(gradient).all()
    if labels == "void" or (fresh and prototypes != "learned"):
        # No other prototype, or not even one: nothing to tell the class from.
        assert result.item() == 0.0
    else:
        assert result.item() > 0
        assert gradient.abs().sum() > 0


def test_zero_and_huge_embeddings_stay_finite():
    for scale in (0.0, 1e-20, 1e12):
        feature, logits, labels, _ = make_inputs()
        scaled = (feature.detach() * scale).float().requires_grad_(True)
        result = make_rch().float()(RegularizerInput({TAP: scaled, LOGITS: logits.float()}, labels, K))
        (gradient,) = torch.autograd.grad(result["loss_rch_metric"], scaled)
        assert torch.isfinite(result["loss_rch_metric"])
        assert torch.isfinite(gradient).all()


def test_diagnostics_by_hand():
    feature = torch.tensor([[[[1.0, 2.0, 0.0, 1.0]], [[0.0, 0.0, 3.0, -1.0]]]], dtype=torch.float64)
    logits = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    for pixel, predicted in enumerate([0, 0, 1, 0]):
        logits[0, predicted, 0, pixel] = 1.0
    labels = torch.tensor([[[0, 0, 1, 1]]])
    rch = RCH(3, 2, embedding_channels=2, feature_tap=TAP, logits_tap=LOGITS, weights={"metric": 1.0})
    observed(rch.double())
    rch.projection = nn.Identity()
    with EventStorage() as storage:
        rch(RegularizerInput({TAP: feature.requires_grad_(True), LOGITS: logits}, labels, 3))
        latest = {key: value for key, (value, _) in storage.latest().items()}
    half = 0.5**0.5
    # Prototypes (1, 0) and (0, 1); the last pixel is an FN of class 1 and an FP of class 0.
    expected = {
        "true_positives": 0.75,
        "misclassified": 0.25,
        "classes": 2,
        "positive_similarity": (3 - half) / 4,
        "negative_similarity": half / 4,
        # phi of the pixels of class 1: 1 + half and 0 (the pixel itself). psi of class 0: 1 + half twice.
        "fn_compensation": (1 + half) / 4,
        "fp_penalty": 2 * (1 + half) / 4,
    }
    assert {key: latest[f"rch/{key}"] for key in expected} == pytest.approx(expected)


def test_the_projection_is_a_convolution_and_a_norm():
    projection = LinearProjection(3, D, nn.BatchNorm2d)
    x = 3 * torch.randn(2, 3, 4, 4) + 1
    embeddings = projection(x)
    torch.testing.assert_close(embeddings.mean((0, 2, 3)), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(embeddings.var((0, 2, 3), unbiased=False), torch.ones(D), atol=1e-3, rtol=0)
    assert (embeddings < 0).any()
    assert projection(x[:1, :, :1, :1]).shape == (1, D, 1, 1)
    before = [buffer.clone() for buffer in projection.buffers()]
    with torch.no_grad():
        projection(x)
    assert all(torch.equal(a, b) for a, b in zip(before, projection.buffers(), strict=True))
    assert LinearProjection(3, D, lambda channels: None).conv.bias is not None


@pytest.mark.parametrize(
    ("keys", "tap"),
    [
        ({}, "backbone:out[res4]"),
        ({"FEATURES": "sem_seg_head.predictor:in"}, "sem_seg_head.predictor:in"),
        ({"CLASSIFIER": "sem_seg_head.predictor"}, "sem_seg_head.dropout:in"),
    ],
)
def test_keys_reach_the_regularizer(keys, tap):
    cfg = small_cfg(regularizers=["RCH"])
    section = cfg.MODEL.REGULARIZERS.RCH
    section.update(keys)
    section.update({"EMA_DECAY": 0.8, "TEMPERATURE": 0.25, "PROTOTYPES": "gt", "WEIGHT": 0.4})
    section.update({"FP_PENALTY": False, "FN_COMPENSATION": False, "CALIBRATION_SCALE": 0.5})
    section.DETACH_PROTOTYPES = True
    section.ERRORS = "batch"
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    section.CHANNELS = 32
    network = build_model(small_cfg())
    rch = build_regularizers(cfg, network)["RCH"]
    assert rch.feature_tap == tap
    assert rch.logits_tap == "sem_seg_head.predictor:out"
    assert rch.weights == {"metric": 0.4}
    in_channels = network.backbone.output_shape()["res4"].channels if "res4" in tap else 16
    assert rch.projection.conv.weight.shape == (32, in_channels, 1, 1)
    assert isinstance(rch.projection.conv.norm, nn.GroupNorm)
    assert (rch.ema.centers.shape, rch.ema.decay) == ((K, 32), 0.8)
    assert (rch.temperature, rch.prototypes, rch.calibration_scale) == (0.25, "gt", 0.5)
    assert (rch.fp_penalty, rch.fn_compensation, rch.detach_prototypes) == (False, False, True)
    assert rch.errors == "batch"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prototypes": "mean"}, "RCH: prototypes is 'mean'"),
        ({"temperature": 0.0}, "RCH: temperature is 0.0"),
        ({"errors": "world"}, "RCH: errors is 'world'"),
        ({"ema_decay": 1.0}, "RCH: ema_decay is 1.0"),
        ({"calibration_scale": -1.0}, "RCH: calibration_scale is -1.0"),
        ({"prototypes": "learned", "detach_prototypes": True}, "RCH: detach_prototypes is True"),
        ({"warmup_method": "cosine"}, "RCH: warmup_method"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        make_rch(**options)
