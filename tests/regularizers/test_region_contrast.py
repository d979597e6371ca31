"""RegionContrast against the paper's equations as slow loops, over all options and several steps."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.regularizers import RegionContrast, RegularizerInput
from regseg_d2.segmentor.regularizers import build_regularizers
from tests.helpers import observed, small_cfg
from tests.references.region_contrast import region_centers, region_contrast_loss, store

K, C, IGNORE = 4, 6, 255
FEATURE, LOGITS = "head:in", "head:out"
KEY = "loss_region_contrast_contrast"
CENTERS = ("dynamic", "gt_mean", "predicted")


def make_region_contrast(**options):
    options = {"weights": {"contrast": 1.0}, "bank_size": 3, **options}
    module = RegionContrast(K, C, feature_tap=FEATURE, logits_tap=LOGITS, **options)
    # A bank in float64 too, so that it can be compared to the last digits.
    return module.double() if options.get("bank_dtype", "float64") == "float64" else module


def make_inputs(seed=0, labels=None, batch_size=2):
    """Three images' worth of random pixels; about a third are predicted right."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(batch_size, C, 3, 4, dtype=torch.float64, generator=generator) + 0.3
    logits = 2 * torch.randn(batch_size, K, 3, 4, dtype=torch.float64, generator=generator)
    if labels is None:
        # Class 3 comes in odd steps only, class 2 in the last image only, some pixels are void.
        labels = torch.randint(0, 2, (batch_size, 3, 4), generator=generator)
        labels[-1, 0] = 2
        labels[0, 2, :3] = 3 if seed % 2 else 1
        labels[0, 1, :2] = IGNORE
    feature.requires_grad_(True)
    return feature, logits, labels, RegularizerInput({FEATURE: feature, LOGITS: logits}, labels, K)


def assert_like_reference(loss, centers, stored, feature, temperature=0.2, rtol=1e-9, reduction="mean"):
    expected = region_contrast_loss(centers, stored, temperature, reduction)
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-12)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(loss, feature, retain_graph=True)
        (expected_gradient,) = torch.autograd.grad(expected, feature, retain_graph=True)
        torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=1e-12)
        assert expected_gradient.abs().sum() > 0
    return expected


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("bank_size", [1, 3, 50])
@pytest.mark.parametrize(("temperature", "reduction"), [(0.1, "mean"), (0.2, "mean"), (0.2, "class_sum")])
def test_losses_gradients_and_bank_over_several_steps(center, bank_size, temperature, reduction):
    module = make_region_contrast(
        center=center, bank_size=bank_size, temperature=temperature, reduction=reduction
    )
    stored = {}
    losses = []
    for step in range(5):
        feature, logits, labels, inputs = make_inputs(seed=step)
        result = module(inputs)
        assert tuple(result) == (KEY,) == module.loss_keys
        centers = region_centers(feature, labels, logits, K, IGNORE, center)
        expected = assert_like_reference(
            result[KEY], centers, stored, feature, temperature, reduction=reduction
        )
        losses.append(expected.item())
        store(stored, centers, bank_size)
        for k in range(K):
            kept = module.bank.rows[k][module.bank.filled[k]]
            assert len(kept) == len(stored.get(k, []))
            # The ring's order is that of slots; the reference's that of time.
            for row in stored.get(k, []):
                assert (kept - row).abs().amax(1).min() < 1e-12
    assert losses[0] == 0.0
    assert min(losses[1:]) > 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bank_of_lower_precision_is_read_as_it_was_stored(dtype):
    module = make_region_contrast(bank_dtype=dtype, bank_size=4)
    assert module.bank.rows.dtype == getattr(torch, dtype)
    for step in range(3):
        feature, logits, labels, inputs = make_inputs(seed=step)
        rows, filled = module.bank.rows.double(), module.bank.filled
        stored = {k: list(rows[k][filled[k]]) for k in range(K)}
        loss = module(inputs)[KEY]
        centers = region_centers(feature, labels, logits, K, IGNORE, "dynamic")
        assert_like_reference(loss, centers, stored, feature)
        # Image by image into the slots of its class, rounded once.
        slots = module.bank.written.clone()
        for regions in reversed(centers):
            for k, center in regions.items():
                slots[k] -= 1
                stored_row = module.bank.rows[k, slots[k] % 4]
                torch.testing.assert_close(stored_row, center.detach().to(stored_row.dtype))


@pytest.mark.parametrize("reduction", ["mean", "class_sum"])
@pytest.mark.parametrize("center", CENTERS)
def test_without_a_bank_the_other_regions_of_the_batch_are_the_samples(center, reduction):
    module = make_region_contrast(center=center, bank_size=0, reduction=reduction)
    assert module.bank is None
    assert module.memory_bytes == 0
    # The forwards counted are all that a bankless one keeps.
    assert set(module.state_dict()) == {"num_forwards", "zero_streaks"}
    for step in range(3):
        feature, logits, labels, inputs = make_inputs(seed=step, batch_size=3)
        centers = region_centers(feature, labels, logits, K, IGNORE, center)
        loss = module(inputs)[KEY]
        assert assert_like_reference(loss, centers, None, feature, reduction=reduction).item() > 0


def test_a_sum_over_classes_is_larger_by_their_number_and_weighs_rare_ones_alike():
    # Three regions of class 0 and two of class 1, on unit vectors; class 2 is alone and has no positive.
    feature = torch.zeros(3, C, 1, 3, dtype=torch.float64)
    angles = torch.tensor([[0.0, 1.2, 2.0], [0.3, 1.5, 0.0], [0.1, 0.0, 0.0]], dtype=torch.float64)
    feature[:, 0, 0], feature[:, 1, 0] = angles.cos(), angles.sin()
    labels = torch.tensor([[[0, 1, 2]], [[0, 1, IGNORE]], [[0, IGNORE, IGNORE]]])
    inputs = RegularizerInput(
        {FEATURE: feature.requires_grad_(True), LOGITS: torch.zeros(3, K, 1, 3)}, labels, K
    )
    # A gt_mean center is the pixel itself here.
    module = {
        reduction: make_region_contrast(center="gt_mean", bank_size=0, reduction=reduction)
        for reduction in ("mean", "class_sum")
    }
    mean, class_sum = (module[reduction](inputs)[KEY].item() for reduction in ("mean", "class_sum"))
    points = {0: [0.0, 0.3, 0.1], 1: [1.2, 1.5], 2: [2.0]}
    own_losses = {0: [], 1: []}
    for k, losses in own_losses.items():
        for i, angle in enumerate(points[k]):
            pushes = sum(
                math.exp(math.cos(angle - other) / 0.2) for j in points if j != k for other in points[j]
            )
            pulls = [math.exp(math.cos(angle - other) / 0.2) for j, other in enumerate(points[k]) if j != i]
            losses.append(sum(-math.log(pull / (pull + pushes)) for pull in pulls) / len(pulls))
    assert mean == pytest.approx(sum(sum(losses) for losses in own_losses.values()) / 5)
    assert class_sum == pytest.approx(sum(sum(losses) / len(losses) for losses in own_losses.values()))
    assert 1.5 * mean < class_sum < 3 * mean


@pytest.mark.parametrize(("bank_size", "reduction"), [(0, "mean"), (3, "mean"), (3, "class_sum")])
def test_static_shapes_as_on_a_gpu_give_the_same(monkeypatch, bank_size, reduction):
    def compact_without_a_shape_that_depends_on_data(mask):
        items = mask.logical_not().to(torch.uint8).argsort(stable=True)
        return items, mask[items]

    expected_module, module = (
        make_region_contrast(bank_size=bank_size, reduction=reduction) for _ in range(2)
    )
    for step in range(3):
        feature, _, _, inputs = make_inputs(seed=step)
        expected = expected_module(inputs)[KEY]
        with monkeypatch.context() as patch:
            name = "regseg_d2.regularizers.region_contrast.compact"
            patch.setattr(name, compact_without_a_shape_that_depends_on_data)
            loss = module(inputs)[KEY]
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(value, feature)[0] for value in (loss, expected)]
        torch.testing.assert_close(*gradients)
        assert expected.item() > 0 or (bank_size and step == 0)


def test_one_image_without_a_bank_has_no_positive():
    feature, _, _, inputs = make_inputs(batch_size=1)
    loss = make_region_contrast(bank_size=0)(inputs)[KEY]
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, feature)[0].abs().sum() == 0


@pytest.mark.parametrize("reduction", ["mean", "class_sum"])
def test_gradcheck(reduction):
    feature, logits, labels, inputs = make_inputs()
    module = make_region_contrast(reduction=reduction)
    module(inputs)
    module.eval()

    def loss(x):
        return module(RegularizerInput({FEATURE: x, LOGITS: logits}, labels, K))[KEY]

    assert torch.autograd.gradcheck(loss, (feature,), eps=1e-6, atol=1e-7)


def test_no_gradient_flows_to_the_logits():
    feature, logits, labels, _ = make_inputs()
    logits.requires_grad_(True)
    module = make_region_contrast(bank_size=0)
    loss = module(RegularizerInput({FEATURE: feature, LOGITS: logits}, labels, K))[KEY]
    assert torch.autograd.grad(loss, logits, allow_unused=True) == (None,)


def test_the_loss_is_taken_before_the_centers_are_stored():
    module = make_region_contrast(bank_size=50)
    _, _, _, inputs = make_inputs(seed=1)
    assert module(inputs)[KEY].item() == 0.0
    stored_once = module(inputs)[KEY].item()
    assert stored_once > 0
    # Had the second pass seen its own centers, each would be stored twice, as in the third.
    third = module(inputs)[KEY].item()
    assert third != pytest.approx(stored_once, rel=1e-6)


def test_backward_after_the_bank_was_written_to():
    module = make_region_contrast(bank_size=1)
    module(make_inputs(seed=0)[3])
    feature, logits, labels, inputs = make_inputs(seed=1)
    stored = {k: list(module.bank.rows[k][module.bank.filled[k]].clone()) for k in range(K)}
    loss = module(inputs)[KEY]
    for seed in range(2, 5):
        module(make_inputs(seed=seed)[3])
    centers = region_centers(feature, labels, logits, K, IGNORE, "dynamic")
    assert_like_reference(loss, centers, stored, feature)


def test_a_class_that_the_network_is_sure_of_has_no_dynamic_center():
    labels = torch.tensor([[[0, 0, 1]], [[0, 1, 1]]])
    logits = torch.zeros(2, K, 1, 3, dtype=torch.float64)
    # Class 0 is right to the last digit everywhere in the first image; class 1 is never right.
    logits[0, 0] = 1e4
    logits[1, 2] = 1e4
    feature = torch.rand(2, C, 1, 3, dtype=torch.float64, requires_grad=True)
    module = make_region_contrast()
    loss = module(RegularizerInput({FEATURE: feature, LOGITS: logits}, labels, K))[KEY]
    assert module.bank.written.tolist() == [1, 2, 0, 0]
    assert torch.isfinite(torch.autograd.grad(loss, feature)[0]).all()


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("bank_size", [0, 3])
@pytest.mark.parametrize("kind", ["void", "class_zero", "all_right", "all_wrong"])
@pytest.mark.parametrize(("batch_size", "reduction"), [(1, "mean"), (2, "mean"), (2, "class_sum")])
def test_degenerate_batches_are_finite_and_attached(center, bank_size, kind, batch_size, reduction):
    module = make_region_contrast(center=center, bank_size=bank_size, reduction=reduction)
    module(make_inputs(seed=1)[3])
    labels = {
        "void": torch.full((batch_size, 3, 4), IGNORE),
        "class_zero": torch.zeros(batch_size, 3, 4, dtype=torch.long),
    }.get(kind, torch.arange(12).view(1, 3, 4).expand(batch_size, -1, -1) % K)
    feature, logits, _, _ = make_inputs(labels=labels, batch_size=batch_size)
    if kind.startswith("all"):
        shift = 0 if kind == "all_right" else 1
        logits.zero_().scatter_(1, (labels.unsqueeze(1) + shift) % K, 20.0)
    before = None if module.bank is None else module.bank.written.clone()
    loss = module(RegularizerInput({FEATURE: feature, LOGITS: logits}, labels, K))[KEY]
    (gradient,) = torch.autograd.grad(loss, feature)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if kind == "void":
        assert loss.item() == 0.0
        assert before is None or torch.equal(module.bank.written, before)
    elif bank_size and kind != "class_zero":
        assert loss.item() > 0


def test_labels_larger_than_features_and_logits_of_another_size():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, C, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    logits = torch.randn(2, K, 6, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (2, 12, 16), generator=generator)
    module = make_region_contrast(bank_size=0)
    loss = module(RegularizerInput({FEATURE: feature, LOGITS: logits}, labels, K))[KEY]
    small = torch.nn.functional.interpolate(logits, size=(3, 4), mode="bilinear", align_corners=False)
    centers = region_centers(feature, labels[:, 2::4, 2::4], small, K, IGNORE, "dynamic")
    assert assert_like_reference(loss, centers, None, feature).item() > 0


def test_state_stands_still_in_eval_and_without_gradient():
    module = make_region_contrast()
    inputs = make_inputs()[3]
    module.eval()
    module(inputs)
    module.train()
    with torch.no_grad():
        module(inputs)
    assert module.bank.written.sum() == 0
    module(inputs)
    assert module.bank.written.tolist() == [2, 2, 1, 0]


def test_a_resumed_bank_gives_the_same_losses():
    module, resumed = make_region_contrast(), make_region_contrast()
    for step in range(3):
        module(make_inputs(seed=step)[3])
    resumed.load_state_dict(module.state_dict(), strict=True)
    for step in range(3, 6):
        first, second = (each(make_inputs(seed=step)[3])[KEY] for each in (module, resumed))
        assert torch.equal(first, second)
        assert first.item() > 0
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())


def test_diagnostics_by_hand():
    feature = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[3.0, 0.0]], [[4.0, 2.0]]]], requires_grad=True)
    labels = torch.tensor([[[0, 0]], [[0, 1]]])
    module = RegionContrast(
        3,
        2,
        feature_tap=FEATURE,
        logits_tap=LOGITS,
        weights={"contrast": 1.0},
        center="gt_mean",
        bank_size=4,
    )
    observed(module)
    # Stored first: class 0 at (1, 0) and (0.6, 0.8), class 1 at (0, 1).
    inputs = RegularizerInput({FEATURE: feature, LOGITS: torch.zeros(2, 3, 1, 2)}, labels, 3)
    with EventStorage() as storage:
        module(inputs)
        first = {key: value for key, (value, _) in storage.latest().items()}
        storage.iter = 1
        module(inputs)
        second = {key: value for key, (value, _) in storage.latest().items()}
    assert first["region_contrast/regions"] == 3
    assert first["region_contrast/contrasted"] == 0
    assert first["region_contrast/bank_fill"] == pytest.approx(3 / 12)
    assert second["region_contrast/contrasted"] == 3
    assert second["region_contrast/bank_fill"] == pytest.approx(6 / 12)
    # Positives: (1 + 0.6) / 2, (0.6 + 1) / 2 and 1; negatives: 0, 0.8 and (0 + 0.8) / 2.
    assert second["region_contrast/positive_similarity"] == pytest.approx((0.8 + 0.8 + 1.0) / 3)
    assert second["region_contrast/negative_similarity"] == pytest.approx((0.0 + 0.8 + 0.4) / 3)


def test_memory_bytes_and_half_of_it():
    assert make_region_contrast(bank_dtype="float32", bank_size=10).memory_bytes == K * 10 * C * 4
    assert make_region_contrast(bank_dtype="float16", bank_size=10).memory_bytes == K * 10 * C * 2


def test_defaults_are_the_papers():
    section = get_regseg_cfg().MODEL.REGULARIZERS.RegionContrast
    assert (section.WEIGHT, section.CENTER, section.BANK_SIZE) == (0.1, "dynamic", 1000)
    assert (section.BANK_DTYPE, section.TEMPERATURE, section.REDUCTION) == ("float32", 0.2, "mean")


def test_the_reduction_reaches_the_regularizer():
    cfg = small_cfg(regularizers=["RegionContrast"])
    cfg.MODEL.REGULARIZERS.RegionContrast.REDUCTION = "class_sum"
    assert build_regularizers(cfg, build_model(small_cfg()))["RegionContrast"].reduction == "class_sum"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": "median"}, r"RegionContrast: center is 'median'; expected one of .*'gt_mean'"),
        ({"reduction": "sum"}, r"RegionContrast: reduction is 'sum'; expected one of .*'class_sum'"),
        ({"bank_size": -1}, r"RegionContrast: bank_size is -1; expected 0 \(no bank\) or more"),
        (
            {"bank_dtype": "bfloat16"},
            r"RegionContrast: bank_dtype is 'bfloat16'; expected one of .*'float16'",
        ),
        ({"temperature": 0.0}, r"RegionContrast: temperature is 0\.0; expected 0\.025 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_region_contrast(**options)
