"""What a training forward offers to the regularizers: values, and that each is computed once."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.regularizers import RegularizerInput, inputs
from regseg_d2.regularizers.inputs import LabelSampling
from tests.references.labels import labels_at_cells

IGNORE, K, C = 255, 4, 3
FEATURE, LOGITS = "head:in", "head:out"


def make_inputs(ignore_value=IGNORE, logits_size=(3, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, C, 3, 5, generator=generator, dtype=torch.float64).to(dtype)
    logits = 3 * torch.randn(2, K, *logits_size, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, K, (2, 7, 11), generator=generator)
    targets[0, :3, :4] = ignore_value
    taps = {FEATURE: feature.requires_grad_(), LOGITS: logits.to(dtype).requires_grad_()}
    return RegularizerInput(taps, targets, K, ignore_value)


def count_calls(monkeypatch, name):
    calls = []
    function = getattr(inputs, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(inputs, name, counted)
    return calls


@pytest.mark.parametrize("ignore_value", [IGNORE, 2, -5])
@pytest.mark.parametrize("rule", [None, "center", "corner"])
def test_labels_are_those_of_one_pixel_and_void_is_minus_one(ignore_value, rule):
    given = make_inputs(ignore_value)
    if rule:
        given = replace(given, label_sampling=LabelSampling(rule))
    labels = given.labels_at((3, 5))
    assert torch.equal(labels, labels_at_cells(given.labels, (3, 5), rule or "center", ignore_value))
    assert (labels == -1).any()
    assert (labels != ignore_value).all()
    at_full_size = given.labels_at((7, 11))
    assert torch.equal(at_full_size == -1, given.labels == ignore_value)
    # The head's own labels stay as they are.
    assert (given.labels == ignore_value).any()


@pytest.mark.parametrize("ignore_value", [IGNORE, 2, -5])
@pytest.mark.parametrize("purity", ["0", "0.6"])
def test_labels_by_majority(ignore_value, purity):
    given = make_inputs(ignore_value)
    sampling = LabelSampling("majority", float(purity))
    labels = replace(given, label_sampling=sampling).labels_at((3, 5))
    expected = labels_at_cells(given.labels, (3, 5), "majority", ignore_value, K, Fraction(purity))
    assert torch.equal(labels, expected)


def test_one_hot_labels_have_no_one_where_void():
    given = make_inputs(ignore_value=2)
    one_hot = given.one_hot_at((3, 5), torch.float64)
    expected = torch.zeros(2, K, 15, dtype=torch.float64)
    for n, image in enumerate(given.labels_at((3, 5)).flatten(1).tolist()):
        for p, label in enumerate(image):
            if label >= 0:
                expected[n, label, p] = 1.0
    assert torch.equal(one_hot, expected)
    assert one_hot[:, 2].sum() == 0
    assert 0 < one_hot.sum() < 30


def test_class_sums_follow_a_loop_and_gradients_flow():
    given = make_inputs()
    sums, counts = given.class_sums(FEATURE)
    feature, labels = given.taps[FEATURE], given.labels_at((3, 5))
    for n in range(2):
        for k in range(K):
            members = feature[n].permute(1, 2, 0)[labels[n] == k]
            torch.testing.assert_close(sums[n, k], members.sum(0))
            assert counts[n, k] == len(members)
    (gradient,) = torch.autograd.grad(sums.sum(), feature)
    assert torch.equal(gradient.sum(1), C * (labels >= 0).double())


@pytest.mark.parametrize("size", [(3, 5), (6, 10), (2, 4)])
def test_predictions_are_those_of_the_softmax(size):
    given = make_inputs(logits_size=size)
    logits = given.taps[LOGITS].detach()
    if size != (3, 5):
        logits = F.interpolate(logits, size=(3, 5), mode="bilinear", align_corners=False)
    probabilities = logits.softmax(dim=1)
    predictions = given.predictions(LOGITS, (3, 5))
    assert torch.equal(predictions.classes, probabilities.argmax(dim=1))
    torch.testing.assert_close(predictions.confidence, probabilities.amax(dim=1))
    torch.testing.assert_close(predictions.log_normalizer, logits.exp().sum(1).log())
    labels = given.labels_at((3, 5))
    own = predictions.probability_of(labels)
    for n, i, j in (labels >= 0).nonzero().tolist():
        torch.testing.assert_close(own[n, i, j], probabilities[n, labels[n, i, j], i, j])
        assert predictions.logit_of(labels)[n, i, j] == logits[n, labels[n, i, j], i, j]
    # Of void, the documented class 0: no matter which, but finite.
    void = labels == -1
    assert void.any()
    torch.testing.assert_close(own[void], probabilities[:, 0][void])
    assert not predictions.logits.requires_grad


def test_huge_logits_give_finite_probabilities():
    taps = {LOGITS: torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1)}
    predictions = RegularizerInput(taps, torch.zeros(1, 1, 1).long(), 3).predictions(LOGITS, (1, 1))
    assert predictions.confidence.item() == 1.0
    assert predictions.probability_of(torch.ones(1, 1, 1).long()).item() == 0.0


def test_features_come_in_the_precision_of_losses():
    given = make_inputs(dtype=torch.bfloat16)
    assert given.feature(FEATURE).dtype == torch.float32
    assert given.predictions(LOGITS, (3, 5)).logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(given.feature(FEATURE).sum(), given.taps[FEATURE])
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert make_inputs(dtype=torch.float64).feature(FEATURE).dtype == torch.float64
    assert make_inputs(dtype=torch.float32).feature(FEATURE).dtype == torch.float32


def test_everything_is_computed_once(monkeypatch):
    calls = {
        name: count_calls(monkeypatch, name)
        for name in ("downsample_labels", "one_hot_labels", "class_statistics")
    }
    maxima, softmaxes = [], []
    given = make_inputs()
    for _ in range(2):
        first = given.class_sums(FEATURE)
        assert given.class_sums(FEATURE)[0] is first[0]
        predictions = given.predictions(LOGITS, (3, 5))
        # A torch.Size and integers of another kind ask for the same.
        assert given.predictions(LOGITS, torch.Size((3, 5))) is predictions
        assert given.labels_at(torch.Size((3, 5))) is given.labels_at((3, 5))
        maxima.append(predictions.classes)
        softmaxes.append(predictions.log_normalizer)
        assert predictions.confidence is predictions.confidence
    assert maxima[0] is maxima[1]
    assert softmaxes[0] is softmaxes[1]
    assert {name: len(made) for name, made in calls.items()} == {
        "downsample_labels": 1,
        "one_hot_labels": 1,
        "class_statistics": 1,
    }
    # Another size, tap or type is something else.
    assert given.labels_at((2, 2)).shape == (2, 2, 2)
    assert given.one_hot_at((3, 5), torch.float32).dtype == torch.float32
    assert given.predictions(FEATURE, (3, 5)) is not predictions


def test_what_is_asked_for_without_gradient_first_has_its_gradient_later():
    given = make_inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        given.class_sums(FEATURE)
        assert not given.predictions(LOGITS, (3, 5)).logits.requires_grad
    sums, _ = given.class_sums(FEATURE)
    (gradient,) = torch.autograd.grad(sums.sum(), given.taps[FEATURE])
    assert gradient.abs().sum() > 0


def test_without_gradient_nothing_gets_one():
    with torch.no_grad():
        given = make_inputs()
        taps = {name: tensor.detach() * 2 for name, tensor in given.taps.items()}
        sums, _ = RegularizerInput(taps, given.labels, K).class_sums(FEATURE)
    assert not sums.requires_grad


def test_two_inputs_share_nothing():
    assert make_inputs().labels_at((3, 5)) is not make_inputs().labels_at((3, 5))
