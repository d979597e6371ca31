"""PNE against the paper's equations as slow loops, where the samples are whole populations."""

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.ops import grouped_products, pne
from tests.helpers import observed, small_batch, small_cfg
from tests.ops.pne_scenes import CHANNELS, NUM_CLASSES, SIZE, VOID, inputs_of, make_batch, make_pne
from tests.references.pne import pne_loss

S = 4
# Right pixels of each class are S or none: a sample of S is all of them. Class 3 is predicted, never
# rightly: its pairs have no negatives. In the second image class 1 has anchors and no positives.
WHOLE = [
    ((4, 4, 4, 0), {(0, 1): 3, (0, 3): 4, (1, 0): 1, (1, 2): 4, (1, 3): 2, (2, 0): 3, (2, 3): 1, (3, 1): 2}),
    ((4, 0, 4, 0), {(0, 2): 4, (0, 1): 3, (1, 0): 2, (2, 3): 4, (2, 0): 1, (2, 1): 2}),
]
# Every union of two classes has S pixels; the right pixels of one class are alike, so that it does not
# matter which of them are repeated.
UNIONS = [((2, 2, 2, 0), WHOLE[0][1]), ((2, 2, 2, 0), {(0, 1): 4, (0, 2): 4, (1, 2): 2, (2, 3): 1})]
TWO_CLASSES = [((4, 4, 0, 0), WHOLE[0][1]), ((4, 4, 0, 0), {(0, 3): 4, (0, 1): 2, (1, 0): 4})]


def assert_like_reference(batch, pne_options, reference_options):
    regularizer = observed(make_pne(**pne_options))
    with EventStorage() as storage:
        loss = regularizer(inputs_of(*batch))["loss_pne_contrast"]
        latest = {key: value for key, (value, _) in storage.latest().items()}
    expected, num_anchors, num_sets = pne_loss(*batch, **reference_options)
    assert num_anchors > 5
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, batch[0])
    (expected_gradient,) = torch.autograd.grad(expected, batch[0])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)
    assert expected_gradient.abs().sum() > 0
    assert (latest["pne/anchors"], latest["pne/sets"]) == (num_anchors, num_sets)


CHOICES = list(
    itertools.product(("pne", "asymmetric"), ("softmax", "logit", "none"), pne.NO_NEGATIVES, (True, False))
)


@pytest.fixture(params=["exact sizes", "static sizes"])
def sizes(request, monkeypatch):
    """The step with sizes that depend on data (the CPU's) and with those that do not (a GPU's)."""
    if request.param == "static sizes":

        def compact(mask):
            items = mask.logical_not().to(torch.uint8).argsort(stable=True)
            return items, mask[items]

        monkeypatch.setattr(pne, "compact", compact)
        monkeypatch.setattr(grouped_products, "largest", lambda values, limit: limit)


@pytest.mark.parametrize(("contrast", "weights", "no_negatives", "detach"), CHOICES)
def test_loss_and_gradient_follow_the_equations(contrast, weights, no_negatives, detach, sizes):
    options = {
        "num_samples": S,
        "temperature": 0.7,
        "contrast": contrast,
        "positive_weights": weights,
        "no_negatives": no_negatives,
        "detach_samples": detach,
    }
    assert_like_reference(make_batch(WHOLE), options, options)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_temperatures_of_table_8(temperature):
    options = {"num_samples": S, "temperature": temperature}
    assert_like_reference(make_batch(WHOLE), options, options)


@pytest.mark.parametrize(("individual", "corresponding"), list(itertools.product((True, False), repeat=2)))
@pytest.mark.parametrize("contrast", ["pne", "asymmetric"])
@pytest.mark.parametrize("no_negatives", ["skip", "anchors"])
def test_strategies_of_table_6(individual, corresponding, contrast, no_negatives, sizes):
    options = {
        "num_samples": S,
        "contrast": contrast,
        "individual_anchor_sets": individual,
        "corresponding_negatives": corresponding,
        "no_negatives": no_negatives,
    }
    batch = make_batch(UNIONS, same_within_class=True)
    assert_like_reference(batch, options, options)
    assert_like_reference(make_batch(TWO_CLASSES), options, options)


@pytest.mark.parametrize("no_negatives", ["skip", "anchors"])
@pytest.mark.parametrize("detach", [True, False])
def test_pooled_batch(detach, no_negatives, sizes):
    options = {
        "num_samples": 2 * S,
        "scope": "batch",
        "detach_samples": detach,
        "no_negatives": no_negatives,
    }
    images = [WHOLE[0], ((4, 4, 4, 0), WHOLE[1][1])]
    assert_like_reference(make_batch(images), options, options)
    unions = {**options, "num_samples": 2 * S, "corresponding_negatives": False}
    if detach:
        assert_like_reference(make_batch(UNIONS, same_within_class=True), unions, unions)


def test_pairs_across_images_exist_only_in_the_pooled_batch():
    # Positives of class 0 are in the first image, its anchors in the second.
    batch = make_batch([((4, 0, 0, 0), {}), ((0, 4, 0, 0), {(0, 1): 4})])
    image = make_pne(num_samples=S)(inputs_of(*batch))["loss_pne_contrast"]
    assert image.item() == 0.0
    options = {"num_samples": S, "scope": "batch"}
    expected, num_anchors, _ = pne_loss(*batch, **options)
    assert num_anchors == 4
    torch.testing.assert_close(make_pne(**options)(inputs_of(*batch))["loss_pne_contrast"], expected)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("contrast", ["pne", "asymmetric"])
def test_gradcheck(detach, contrast):
    embeddings, logits, labels = make_batch(WHOLE[:1])
    regularizer = make_pne(num_samples=S, contrast=contrast, detach_samples=detach)
    regularizer.eval()
    frozen = embeddings.detach().clone()

    def loss(x):
        return regularizer(inputs_of(x, logits, labels))["loss_pne_contrast"]

    if not detach:
        assert torch.autograd.gradcheck(loss, (embeddings,), eps=1e-6, atol=1e-7)
        return
    # Samples are constants: the derivative is that of the anchors' side, which are other pixels, but
    # where anchors are their own negatives.
    regularizer = make_pne(num_samples=S, contrast=contrast, no_negatives="skip").eval()
    anchors = (logits.argmax(1) != labels).unsqueeze(1)

    def loss_of_anchors(x):
        return loss(torch.where(anchors, x, frozen))

    assert torch.autograd.gradcheck(loss_of_anchors, (embeddings,), eps=1e-6, atol=1e-7)


def test_extreme_temperature_and_features_stay_finite():
    embeddings, logits, labels = make_batch(WHOLE)
    for scale in (1e-9, 1e9):
        scaled = (embeddings * scale).detach().float().requires_grad_(True)
        regularizer = make_pne(num_samples=S, temperature=1e-3).float()
        loss = regularizer(inputs_of(scaled, logits.float(), labels))["loss_pne_contrast"]
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, scaled)[0]).all()


def test_zero_embeddings_and_negative_logits_stay_finite():
    embeddings, logits, labels = make_batch(WHOLE)
    zero = torch.zeros_like(embeddings, requires_grad=True)
    regularizer = make_pne(num_samples=S, positive_weights="logit", no_negatives="anchors")
    loss = regularizer(inputs_of(zero, logits - 100.0, labels))["loss_pne_contrast"]
    # All similarities are 0: log(1 + S / S), with weights that are all alike.
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert torch.isfinite(torch.autograd.grad(loss, zero)[0]).all()


DEGENERATE = {
    "void": ((0, 0, 0, 0), {}),
    "all right": ((10, 12, 0, 0), {}),
    "all wrong": ((0, 0, 0, 0), {(0, 1): 12, (1, 0): 20, (2, 2 + 1): 8}),
    "one class": ((20, 0, 0, 0), {}),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("individual", [True, False])
def test_degenerate_batches_have_an_attached_zero(case, batch_size, scope, individual, sizes):
    embeddings, logits, labels = make_batch([DEGENERATE[case]] * batch_size)
    regularizer = make_pne(scope=scope, individual_anchor_sets=individual)
    loss = regularizer(inputs_of(embeddings, logits, labels))["loss_pne_contrast"]
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_one_class_with_errors_has_no_negatives_but_its_own_anchors():
    batch = make_batch([((S, 0, 0, 0), {(0, 1): 3, (0, 2): 1})])
    options = {"num_samples": S, "no_negatives": "anchors"}
    loss = make_pne(**options)(inputs_of(*batch))["loss_pne_contrast"]
    expected, num_anchors, _ = pne_loss(*batch, **options)
    assert num_anchors == 4
    torch.testing.assert_close(loss, expected)
    for no_negatives in ("skip", "exclude"):
        loss = make_pne(num_samples=S, no_negatives=no_negatives)(inputs_of(*batch))["loss_pne_contrast"]
        assert loss.item() == 0.0
        assert torch.autograd.grad(loss, batch[0])[0].abs().sum() == 0


def test_by_default_pixels_of_one_class_are_not_pushed_apart():
    # Anchors of class 0 that are alike, seen as class 1, which is never right; positives far from them.
    batch = make_batch([((S, 0, 0, 0), {(0, 1): S})])
    embeddings, logits, labels = batch
    is_anchor = (labels == 0) & (logits.argmax(1) == 1)
    near = torch.zeros_like(embeddings)
    near[:, 0] = 1.0
    near[:, 1] = torch.linspace(-0.1, 0.1, labels.numel(), dtype=torch.float64).view(labels.shape)
    embeddings = torch.where(is_anchor.unsqueeze(1), near, -near).detach().requires_grad_(True)

    def spread_after_a_step(**options):
        loss = make_pne(num_samples=S, **options)(inputs_of(embeddings, logits, labels))["loss_pne_contrast"]
        (gradient,) = torch.autograd.grad(loss, embeddings)
        moved = torch.nn.functional.normalize(embeddings.detach() - gradient, dim=1)
        return moved.movedim(1, -1)[is_anchor].std(dim=0).sum().item()

    unmoved = spread_after_a_step(weights={"contrast": 1e-9})
    assert spread_after_a_step() == pytest.approx(unmoved, rel=1e-6)
    assert spread_after_a_step(no_negatives="anchors") > 1.01 * unmoved


def test_anchors_without_negatives_count_in_the_mean_of_eq_9():
    # Of 5 anchors 2 have negatives (class 1 is right somewhere), 3 have none (class 3 is never right).
    batch = make_batch([((S, S, 0, 0), {(0, 1): 2, (0, 3): 3})])
    losses = {
        no_negatives: make_pne(num_samples=S, no_negatives=no_negatives)(inputs_of(*batch))[
            "loss_pne_contrast"
        ]
        for no_negatives in ("skip", "exclude")
    }
    torch.testing.assert_close(losses["skip"], losses["exclude"] * 2 / 5)
    default = make_pne(num_samples=S)(inputs_of(*batch))["loss_pne_contrast"]
    torch.testing.assert_close(default, losses["skip"], rtol=0, atol=0)
    assert get_regseg_cfg().MODEL.REGULARIZERS.PNE.NO_NEGATIVES == "skip"


def test_weight_scales_the_loss_and_0_switches_it_off():
    batch = make_batch(WHOLE)
    full = make_pne(num_samples=S)(inputs_of(*batch))["loss_pne_contrast"]
    weighted = make_pne(num_samples=S, weights={"contrast": 1.3})(inputs_of(*batch))["loss_pne_contrast"]
    torch.testing.assert_close(weighted, 1.3 * full)
    assert make_pne(weights={"contrast": 0.0})(inputs_of(*batch)) == {}


def test_draws_change_from_step_to_step_and_are_resumed():
    batch = make_batch([((9, 9, 9, 0), {(0, 1): 5, (1, 2): 5, (2, 0): 5})])
    inputs = inputs_of(*batch)
    regularizer = make_pne(seed=3, num_samples=2, max_anchors=2)
    losses = [regularizer(inputs)["loss_pne_contrast"].item() for _ in range(2)]
    state = {key: value.clone() for key, value in regularizer.state_dict().items()}
    losses += [regularizer(inputs)["loss_pne_contrast"].item() for _ in range(2)]
    assert len(set(losses)) == 4
    resumed = make_pne(seed=8, num_samples=2, max_anchors=2)
    resumed.load_state_dict(state)
    assert [resumed(inputs)["loss_pne_contrast"].item() for _ in range(2)] == losses[2:]
    assert make_pne(seed=4, num_samples=2, max_anchors=2)(inputs)["loss_pne_contrast"].item() != losses[0]


def test_no_draw_is_spent_without_gradient():
    batch = make_batch(WHOLE)
    regularizer = make_pne()
    with torch.no_grad():
        regularizer(inputs_of(*batch))
    regularizer.eval()
    regularizer(inputs_of(*batch))
    assert regularizer.random.step.item() == 0
    regularizer.train()
    regularizer(inputs_of(*batch))
    assert regularizer.random.step.item() == 1


def test_diagnostics_by_hand():
    embeddings = torch.zeros(1, CHANNELS, *SIZE, dtype=torch.float64)
    logits = torch.zeros(1, NUM_CLASSES, *SIZE, dtype=torch.float64)
    labels = torch.full((1, *SIZE), VOID)
    # Two right pixels of class 0 along (1, 0), two of class 1 along (0, 1), two anchors (0 seen as 1)
    # along (3, 4), and one (0 seen as 2) along (1, 0), whose negatives are itself.
    labels[0, 0] = torch.tensor([0, 0, 1, 1, 0, 0, 0])
    logits[0, torch.tensor([0, 0, 1, 1, 1, 1, 2]), 0, torch.arange(7)] = 5.0
    first = torch.tensor([1.0, 1.0, 0.0, 0.0, 3.0, 3.0, 1.0])
    second = torch.tensor([0.0, 0.0, 1.0, 1.0, 4.0, 4.0, 0.0])
    embeddings[0, 0, 0], embeddings[0, 1, 0] = first.double(), second.double()
    embeddings.requires_grad_(True)
    regularizer = observed(make_pne(num_samples=2, temperature=0.5, no_negatives="anchors"))
    with EventStorage() as storage:
        regularizer(inputs_of(embeddings, logits, labels))
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert latest["pne/anchors"] == 3
    assert latest["pne/sets"] == 2
    assert latest["pne/positive_similarity"] == pytest.approx((0.6 + 0.6 + 1.0) / 3)
    assert latest["pne/negative_similarity"] == pytest.approx((0.8 + 0.8 + 1.0) / 3)
    assert latest["pne/misclassified"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SCOPE", "world"),
        ("CONTRAST", "infonce"),
        ("POSITIVE_WEIGHTS", "sigmoid"),
        ("NO_NEGATIVES", "keep"),
        ("CHANNELS", 0),
        ("NUM_SAMPLES", 0),
        ("MAX_ANCHORS", -1),
        ("TEMPERATURE", 0.0),
    ],
)
def test_bad_keys_are_named_with_their_value(key, value):
    cfg = small_cfg("FCN", ["PNE"])
    cfg.merge_from_list([f"MODEL.REGULARIZERS.PNE.{key}", value])
    with pytest.raises(ConfigError, match=f"MODEL.REGULARIZERS.PNE.{key} is {value!r}; expected"):
        build_model(cfg)


def test_projection_leaves_no_trace_and_one_pixel_does_not_break_it():
    torch.manual_seed(1)
    model = build_model(
        small_cfg("FCN", ["PNE"], REGULARIZERS__PNE__CHANNELS=12, REGULARIZERS__PNE__NO_NEGATIVES="anchors")
    )
    projection = model.regularizers["PNE"].projection
    assert projection.out.out_channels == 12
    before = {name: buffer.clone() for name, buffer in projection.named_buffers()}
    model(small_batch())["loss_pne_contrast"].backward()
    assert projection.hidden.weight.grad.abs().sum() > 0
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in projection.named_buffers())
    single = projection(torch.randn(1, 16, 1, 1))
    assert single.shape == (1, 12, 1, 1)
    assert torch.isfinite(single).all()
