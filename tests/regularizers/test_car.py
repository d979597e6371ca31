"""CAR against the paper's equations as slow loops, over all options."""

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from regseg_d2.common.errors import ConfigError
from regseg_d2.ops.car import deviations, inter_c2p_loss, intra_c2p_loss
from regseg_d2.ops.class_statistics import class_statistics, divide_by_counts
from regseg_d2.ops.labels import one_hot_labels
from regseg_d2.regularizers import CAR, RegularizerInput
from tests.helpers import observed
from tests.references.car import car_losses

K, C, IGNORE = 4, 6, 255
TAP = "head:in"


def make_car(**options):
    return CAR(K, C, feature_tap=TAP, **options)


def make_inputs(seed=0, labels=None, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    feature = scale * torch.randn(2, C, 3, 4, dtype=torch.float64, generator=generator)
    feature.requires_grad_(True)
    if labels is None:
        # Class 3 is absent, class 2 is in the second image only, some pixels are void.
        labels = torch.randint(0, 2, (2, 3, 4), generator=generator)
        labels[1, 0] = 2
        labels[0, 1, :2] = IGNORE
    return feature, labels, RegularizerInput({TAP: feature}, labels, K)


def assert_like_reference(car, feature, labels, inputs, **options):
    result = car(inputs)
    expected = car_losses(feature, labels, K, IGNORE, **options)
    for term, value in expected.items():
        torch.testing.assert_close(result[f"loss_car_{term}"], value, rtol=1e-9, atol=1e-12)
    # Different weights, so that a gradient in the wrong term cannot hide.
    weights = {"intra_c2p": 1.0, "inter_c2c": 0.7, "inter_c2p": 0.3}
    ours = sum(weights[term] * result[f"loss_car_{term}"] for term in weights)
    theirs = sum(weights[term] * expected[term] for term in weights)
    (gradient,) = torch.autograd.grad(ours, feature)
    (expected_gradient,) = torch.autograd.grad(theirs, feature)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)
    assert expected_gradient.abs().sum() > 0


OPTIONS = list(
    itertools.product(
        ("batch", "image"), (True, False), ("exclude", "zero"), (True, False), ("mse", "squared_mean")
    )
)


@pytest.mark.parametrize(("centers", "scale", "absent", "detach", "reduction"), OPTIONS)
def test_losses_and_gradients_follow_the_equations(centers, scale, absent, detach, reduction):
    options = {
        "centers": centers,
        "scale_c2p": scale,
        "absent_classes": absent,
        "detach_centers": detach,
        "reduction": reduction,
        "eps_c2c": 0.3,
        "eps_c2p": 0.1,
    }
    feature, labels, inputs = make_inputs()
    assert_like_reference(make_car(**options), feature, labels, inputs, **options)


@pytest.mark.parametrize("decay", [0.8, 0.99])
@pytest.mark.parametrize("detach", [True, False])
def test_moving_average_centers_over_several_steps(decay, detach):
    car = make_car(centers="ema", ema_decay=decay, detach_centers=detach)
    stored = [None] * K
    for step in range(3):
        feature, labels, inputs = make_inputs(seed=step)
        if step == 1:
            labels[labels == 1] = 3
        options = {"centers": "ema", "ema_decay": decay, "stored": stored, "detach_centers": detach}
        assert_like_reference(car, feature, labels, inputs, **options)
        for k in range(K):
            members = feature.detach().permute(0, 2, 3, 1)[labels == k]
            if len(members):
                mean = members.mean(0)
                stored[k] = mean if stored[k] is None else decay * stored[k] + (1 - decay) * mean
        for k in range(K):
            expected = torch.zeros(C, dtype=torch.float64) if stored[k] is None else stored[k]
            torch.testing.assert_close(car.ema.centers[k].double(), expected, rtol=1e-5, atol=1e-6)
        # The next step starts from the stored float32 values.
        stored = [None if s is None else car.ema.centers[k].double() for k, s in enumerate(stored)]
    assert car.ema.counts.tolist() == [3, 2, 3, 1]


@pytest.mark.parametrize("centers", ["batch", "image"])
def test_gradcheck(centers):
    feature, labels, _ = make_inputs()
    car = make_car(centers=centers, detach_centers=False, eps_c2c=0.0, eps_c2p=0.0)

    def total(x):
        return sum(car(RegularizerInput({TAP: x}, labels, K)).values())

    assert torch.autograd.gradcheck(total, (feature,), eps=1e-6, atol=1e-7)


def test_thresholds_use_all_classes_and_cut_small_entries():
    feature, labels, inputs = make_inputs()
    high = make_car(eps_c2c=3.0, eps_c2p=3.0)(inputs)
    # A threshold of 3 / (K - 1) = 1 is never exceeded.
    assert high["loss_car_inter_c2c"].item() == 0.0
    assert high["loss_car_inter_c2p"].item() == 0.0
    expected = car_losses(feature, labels, K, IGNORE, eps_c2c=0.9, eps_c2p=0.9)
    result = make_car(eps_c2c=0.9, eps_c2p=0.9)(inputs)
    torch.testing.assert_close(result["loss_car_inter_c2p"], expected["inter_c2p"])


def test_weights_scale_and_switch_terms():
    _, _, inputs = make_inputs()
    full = make_car()(inputs)
    part = make_car(weights={"intra_c2p": 2.0, "inter_c2c": 0.0, "inter_c2p": 0.5})
    assert part.loss_keys == ("loss_car_intra_c2p", "loss_car_inter_c2p")
    result = part(inputs)
    assert tuple(result) == part.loss_keys
    torch.testing.assert_close(result["loss_car_intra_c2p"], 2.0 * full["loss_car_intra_c2p"])
    torch.testing.assert_close(result["loss_car_inter_c2p"], 0.5 * full["loss_car_inter_c2p"])


def test_pooling_averages_the_feature_and_takes_the_label_at_its_center():
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(1, C, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, K, (1, 4, 6), generator=generator)
    result = make_car(pool=2)(RegularizerInput({TAP: feature}, labels, K))
    pooled = torch.stack(
        [
            feature[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            for i in range(2)
            for j in range(3)
        ],
        dim=2,
    ).view(1, C, 2, 3)
    expected = car_losses(pooled, labels[:, 1::2, 1::2], K, IGNORE)
    torch.testing.assert_close(result["loss_car_intra_c2p"], expected["intra_c2p"])


@pytest.mark.parametrize(
    ("method", "expected"), [("constant", [0, 0, 0, 0, 1]), ("linear", [0, 0.25, 0.5, 0.75, 1])]
)
def test_warm_up(method, expected):
    _, _, inputs = make_inputs()
    full = make_car()(inputs)["loss_car_intra_c2p"]
    car = make_car(warmup_iters=4, warmup_method=method)
    shares = [(car(inputs)["loss_car_intra_c2p"] / full).item() for _ in range(5)]
    assert shares == pytest.approx(expected)


def test_losses_end():
    _, _, inputs = make_inputs()
    full = make_car()(inputs)["loss_car_intra_c2p"]
    car = make_car(warmup_iters=1, until_iter=3)
    shares = [(car(inputs)["loss_car_intra_c2p"] / full).item() for _ in range(5)]
    assert shares == pytest.approx([0, 1, 1, 0, 0])
    with pytest.raises(ConfigError, match="CAR: until_iter is 3; expected .* more than the warm-up of 3"):
        make_car(warmup_iters=3, until_iter=3)


def test_void_that_is_a_class_number_is_still_void():
    feature, labels, _ = make_inputs()
    as_class = torch.where(labels == IGNORE, torch.full_like(labels, 3), labels)
    result = make_car()(RegularizerInput({TAP: feature}, as_class, K, ignore_index=3))
    expected = car_losses(feature, labels, K, IGNORE)
    torch.testing.assert_close(result["loss_car_intra_c2p"], expected["intra_c2p"])


@pytest.mark.parametrize("labels", ["void", "one_class"])
@pytest.mark.parametrize("centers", ["batch", "image", "ema"])
@pytest.mark.parametrize("absent", ["exclude", "zero"])
def test_degenerate_labels_are_finite_and_attached(labels, centers, absent):
    target = torch.full((2, 3, 4), IGNORE if labels == "void" else 0)
    feature, _, inputs = make_inputs(labels=target)
    result = make_car(centers=centers, absent_classes=absent, detach_centers=False)(inputs)
    total = sum(result.values())
    (gradient,) = torch.autograd.grad(total, feature)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    if labels == "void":
        assert result["loss_car_intra_c2p"].item() == 0.0
        assert result["loss_car_inter_c2p"].item() == 0.0


@pytest.mark.parametrize("spread", [0.1, 0.01, 0.001])
def test_the_intra_loss_of_compact_classes_keeps_its_digits(spread):
    """Classes that are compact and far from the origin, in float32: what training ends in."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.nn.functional.normalize(torch.randn(19, 256, generator=generator))
    labels = torch.randint(0, 19, (2, 4096), generator=generator)
    noise = spread / 16 * torch.randn(2, 4096, 256, generator=generator)
    features = (centers[labels] + noise).transpose(1, 2).contiguous()
    one_hot = one_hot_labels(labels, 19, torch.float32)

    def loss(dtype):
        statistics = class_statistics(features.to(dtype), one_hot.to(dtype))
        sums, counts = statistics.sums.sum(0, keepdim=True), statistics.counts.sum(0, keepdim=True)
        centers = divide_by_counts(sums, counts)
        about_centers = deviations(features.to(dtype), centers, counts > 0, labels)
        return intra_c2p_loss(statistics, centers, one_hot.to(dtype), about_centers).double()

    torch.testing.assert_close(loss(torch.float32), loss(torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("distance", "tolerance"), [(1, 1e-5), (10, 5e-5), (100, 3e-3)])
def test_the_inter_loss_far_from_the_origin_keeps_its_digits(distance, tolerance):
    """In float32, with all features moved by ``distance`` of their standard deviations.

    A rounding of the features themselves changes the gradient by 3e-4 at a distance of 100.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 19, (2, 1024), generator=generator)
    centers = 0.3 * torch.randn(19, 512, generator=generator)
    noise = torch.randn(2, 1024, 512, generator=generator)
    offset = distance * torch.randn(512, generator=generator)
    features = (centers[labels] + noise + offset).transpose(1, 2).contiguous()

    def gradient(dtype):
        x, one_hot = features.to(dtype).requires_grad_(), one_hot_labels(labels, 19, dtype)
        statistics = class_statistics(x, one_hot)
        sums, counts = statistics.sums.sum(0, keepdim=True), statistics.counts.sum(0, keepdim=True)
        means = divide_by_counts(sums, counts).detach()
        about_centers = deviations(x, means, counts > 0, labels)
        loss = inter_c2p_loss(x, means, counts > 0, one_hot, about_centers)
        return torch.autograd.grad(loss, x)[0].double()

    exact = gradient(torch.float64)
    assert exact.norm() > 0
    assert (gradient(torch.float32) - exact).norm() / exact.norm() < tolerance


def test_huge_features_stay_finite():
    feature, _, inputs = make_inputs(scale=1e6)
    total = sum(make_car(scale_c2p=False)(inputs).values())
    assert torch.isfinite(total)
    assert torch.isfinite(torch.autograd.grad(total, feature)[0]).all()


def test_diagnostics_by_hand():
    feature = torch.tensor([[[[1.0, 3.0, 0.0]], [[0.0, 0.0, 2.0]]]], requires_grad=True)  # (1, 2, 1, 3)
    labels = torch.tensor([[[0, 0, 1]]])
    car = observed(CAR(3, 2, feature_tap=TAP), 2)
    inputs = RegularizerInput({TAP: feature}, labels, 3)
    with EventStorage() as storage:
        car(inputs)
        assert "car/intra_distance" not in storage.latest()
        storage.iter = 1
        car(inputs)
        latest = {key: value for key, (value, _) in storage.latest().items()}
    # Centers (2, 0) and (0, 2): distances 1, 1, 0; their cosine is 0.
    assert latest["car/intra_distance"] == pytest.approx((2 / 3) ** 0.5)
    assert latest["car/inter_similarity"] == pytest.approx(0.0)
    assert latest["car/classes"] == 2
    assert latest["unweighted/loss_car_intra_c2p"] == pytest.approx(2 / 6)


INTRA_OF_MEANS = {"reduction": "squared_mean", "weights": {"intra_c2p": 1.0}}


@pytest.mark.parametrize(
    ("options", "is_observed", "passes"),
    [
        ({}, False, 1),
        ({}, True, 1),
        (INTRA_OF_MEANS, False, 0),
        (INTRA_OF_MEANS, True, 1),
        ({"weights": {"inter_c2c": 1.0}}, False, 0),
        ({"pool": 2, "centers": "image"}, True, 1),
    ],
)
def test_pixels_are_measured_once_and_only_for_whoever_needs_it(options, is_observed, passes, monkeypatch):
    measured = []

    def measure(*arguments):
        measured.append(deviations(*arguments))
        return measured[-1]

    monkeypatch.setattr("regseg_d2.ops.car.deviations", measure)
    car, (feature, labels, inputs) = make_car(**options), make_inputs()
    with EventStorage() as storage:
        (observed(car, 1) if is_observed else car)(inputs)
        found = storage.latest().get("car/intra_distance")
    assert len(measured) == passes
    assert (found is not None) == is_observed
    if is_observed and car.pool == 1:
        pixels, ids = feature.detach().movedim(1, -1), labels
        members = [pixels[ids == k] for k in range(K) if (ids == k).any()]
        squares = [(x - m.mean(0)).square().sum() for m in members for x in m]
        assert found[0] == pytest.approx((sum(squares) / len(squares)).sqrt().item())


class LargeResults(TorchDispatchMode):
    """Collects the operators that put out a tensor of at least so many numbers."""

    def __init__(self, size):
        super().__init__()
        self.size, self.operators = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.size:
            self.operators.append(func)
        return result


def test_diagnostics_make_nothing_of_the_size_of_the_feature():
    car, (feature, _, inputs) = make_car(), make_inputs()
    with LargeResults(feature.numel()) as found:
        _, step = car.losses(inputs)
        assert len(found.operators) >= 1  # the differences
        found.operators.clear()
        with torch.no_grad():
            car.diagnostics(inputs, step)
    assert found.operators == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"centers": "epoch"}, "CAR: centers is"),
        ({"absent_classes": "drop"}, "CAR: absent_classes is"),
        ({"reduction": "sum"}, "CAR: reduction is"),
        ({"pool": 0}, "CAR: pool is"),
        ({"warmup_method": "cosine"}, "CAR: warmup_method is"),
        ({"weights": {"intra_c2p": -1.0}}, "weights"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        make_car(**options)
