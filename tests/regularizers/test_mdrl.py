"""MDRL's losses and memory against the paper's equations as slow loops."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import ConfigError
from regseg_d2.ops.mdrl import seed_directions
from regseg_d2.regularizers import MDRL, RegularizerInput
from tests.helpers import observed
from tests.references import mdrl as reference

K, Z, IGNORE = 4, 6, 255
TAP = "head:in"
BOTH = {"local": 1.0, "global": 1.0}


def make_mdrl(num_distributions=3, **options):
    options.setdefault("weights", BOTH)
    return MDRL(K, Z, num_distributions=num_distributions, feature_tap=TAP, **options).double()


def make_inputs(seed=0, labels=None, size=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    feature = 2 * torch.randn(2, Z, *size, dtype=torch.float64, generator=generator)
    feature += torch.randn(1, Z, 1, 1, dtype=torch.float64, generator=generator)
    feature.requires_grad_(True)
    if labels is None:
        # Class 3 is absent at first, class 2 has two pixels (fewer than distributions), some are void.
        labels = torch.randint(0, 2, (2, *size), generator=generator)
        labels[1, 0, :2] = 2
        labels[0, 1, :2] = IGNORE
        if seed > 1:
            labels[0, 2, 1:] = 3
    return feature, labels, RegularizerInput({TAP: feature}, labels, K)


def to_lists(feature, labels):
    pixels = list(feature.permute(0, 2, 3, 1).reshape(-1, Z))
    return pixels, [None if y == IGNORE else int(y) for y in labels.flatten()]


OPTIONS = [
    {},
    {"num_distributions": 1},
    {"num_distributions": 9},
    {"temperature": 0.1},
    {"momentum": 0.5},
    {"sinkhorn_lambda": 0.3},
    {"sinkhorn_iters": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_gradients_and_memory_over_several_steps(options):
    mdrl = make_mdrl(**options)
    number = mdrl.memory.num_distributions
    directions = list(seed_directions(number, Z).double())
    memory, counts = [None] * K, [[0] * number for _ in range(K)]
    for step in range(3):
        feature, labels, inputs = make_inputs(seed=step)
        result = mdrl(inputs)
        pixels, ids = to_lists(feature, labels)
        memory = reference.started_memory(memory, pixels, ids, directions)
        expected = {
            "local": reference.local_loss(memory, pixels, ids),
            "global": reference.global_loss(memory, pixels, ids, mdrl.temperature),
        }
        for term, value in expected.items():
            torch.testing.assert_close(result[f"loss_mdrl_{term}"], value, rtol=1e-9, atol=1e-12)
            gradients = [
                torch.autograd.grad(x, feature, retain_graph=True)[0]
                for x in (result[f"loss_mdrl_{term}"], value)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
            assert gradients[1].abs().sum() > 0
        assigned = reference.assignments(memory, pixels, ids, mdrl.sinkhorn_lambda, mdrl.sinkhorn_iters)
        memory = reference.updated_memory(memory, counts, pixels, ids, assigned, mdrl.memory.momentum)
        assert mdrl.memory.counts.tolist() == counts
        for k in range(K):
            expected = torch.zeros(number, Z) if memory[k] is None else torch.stack(memory[k])
            torch.testing.assert_close(mdrl.memory.distributions[k], expected.double(), rtol=1e-8, atol=1e-10)
    assert mdrl.memory.seen.all()


def test_pixels_are_shared_among_all_distributions():
    feature, labels, inputs = make_inputs(labels=torch.zeros(2, 12, 12, dtype=torch.long), size=(12, 12))
    mdrl = observed(make_mdrl(9))
    with EventStorage() as storage:
        mdrl(inputs)
        assert storage.latest()["mdrl/usage_entropy"][0] > 0.9
    assert mdrl.memory.counts[0].tolist() == [1] * 9


def test_gradcheck_with_a_memory():
    mdrl = make_mdrl()
    feature, labels, inputs = make_inputs()
    mdrl(inputs)
    mdrl.eval()

    # A pixel's own feature also moves the start of a new class, which is a constant: no new class here.
    def total(x):
        return sum(mdrl(RegularizerInput({TAP: x}, labels, K)).values())

    assert torch.autograd.gradcheck(total, (feature,), eps=1e-6, atol=1e-7)


def test_the_batch_may_come_in_any_order_and_any_split_of_images():
    """The start and the clustering see sums only: permuted images give the same memory."""
    memories = []
    for order in ([0, 1], [1, 0]):
        mdrl = make_mdrl(9)
        for step in range(3):
            feature, labels, _ = make_inputs(seed=step)
            mdrl(RegularizerInput({TAP: feature[order]}, labels[order], K))
        memories.append(mdrl.memory.distributions)
    torch.testing.assert_close(*memories)


def test_weights_scale_and_switch_terms():
    _, _, inputs = make_inputs()
    full = make_mdrl()(inputs)
    for term in BOTH:
        part = make_mdrl(weights={term: 0.25})
        assert part.loss_keys == (f"loss_mdrl_{term}",)
        result = part(inputs)
        assert tuple(result) == part.loss_keys
        torch.testing.assert_close(result[f"loss_mdrl_{term}"], 0.25 * full[f"loss_mdrl_{term}"])
    # Without a loss the memory is still moved: the head may need it.
    none = make_mdrl(weights={"local": 0.0, "global": 0.0})
    assert none(inputs) == {}
    assert none.memory.seen.tolist() == [True, True, True, False]


def test_class_zero_and_a_void_label_that_is_a_class_number():
    feature, labels, _ = make_inputs()
    expected = make_mdrl()(RegularizerInput({TAP: feature}, labels, K))
    as_class = torch.where(labels == IGNORE, 3, labels)
    result = make_mdrl()(RegularizerInput({TAP: feature}, as_class, K, ignore_index=3))
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value)
    only_zero = make_mdrl()
    only_zero(RegularizerInput({TAP: feature}, torch.zeros_like(labels), K))
    assert only_zero.memory.seen.tolist() == [True, False, False, False]


@pytest.mark.parametrize("labels", ["void", "one_class", "one_pixel", "dead"])
@pytest.mark.parametrize("filled", [False, True])
def test_degenerate_batches_are_finite_and_attached(labels, filled):
    mdrl = make_mdrl()
    if filled:
        mdrl(make_inputs()[2])
    target = torch.full((2, 3, 4), 0 if labels in ("one_class", "dead") else IGNORE)
    if labels == "one_pixel":
        target[1, 2, 2] = 1
    feature, _, inputs = make_inputs(labels=target)
    if labels == "dead":
        feature = torch.zeros_like(feature, requires_grad=True)
        inputs = RegularizerInput({TAP: feature}, target, K)
    before = copy.deepcopy(mdrl.memory.state_dict())
    result = mdrl(inputs)
    total = sum(result.values())
    (gradient,) = torch.autograd.grad(total, feature)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(mdrl.memory.distributions).all()
    if labels == "void" or (labels == "dead" and not filled):
        assert total.item() == 0.0
    if labels in ("void", "dead"):
        assert all(torch.equal(before[key], value) for key, value in mdrl.memory.state_dict().items())


def test_features_of_any_length_have_the_same_losses():
    feature, labels, _ = make_inputs()
    for factor in (1e-3, 1e6):
        result = make_mdrl()(RegularizerInput({TAP: feature * factor}, labels, K))
        expected = make_mdrl()(RegularizerInput({TAP: feature}, labels, K))
        torch.testing.assert_close(result["loss_mdrl_global"], expected["loss_mdrl_global"])


def test_state_is_frozen_in_eval_and_without_gradient():
    mdrl = make_mdrl()
    _, _, inputs = make_inputs()
    mdrl.eval()
    mdrl(inputs)
    assert not mdrl.memory.seen.any()
    mdrl.train()
    with torch.no_grad():
        mdrl(inputs)
    assert not mdrl.memory.seen.any()
    mdrl(inputs)
    assert mdrl.memory.seen.any()


def test_diagnostics_by_hand():
    feature = torch.tensor([[[[2.0, 0.0, 0.0]], [[0.0, 3.0, 1.0]]]], dtype=torch.float64)  # (1, 2, 1, 3)
    labels = torch.tensor([[[0, 0, 1]]])
    mdrl = observed(MDRL(3, 2, num_distributions=2, feature_tap=TAP, weights=BOTH).double(), 2)
    memory = mdrl.memory
    memory.distributions[0] = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    memory.distributions[1] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    memory.counts[:2] = 1
    with EventStorage() as storage:
        storage.iter = 1
        mdrl(RegularizerInput({TAP: feature.requires_grad_(True)}, labels, 3))
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert latest["mdrl/classes_with_memory"] == 2
    # Own: 1, 0.8 and 1. Nearest of the other class: 0, 1 and 0.8.
    assert latest["mdrl/own_similarity"] == pytest.approx(2.8 / 3)
    assert latest["mdrl/other_similarity"] == pytest.approx(1.8 / 3)
    # Class 0 uses both of its distributions, class 1 has one pixel only.
    assert latest["mdrl/usage_entropy"] == pytest.approx(0.5)
    after = memory.distributions
    cosines = [(after[k, 0] * after[k, 1]).sum().item() for k in range(2)]
    assert latest["mdrl/spread"] == pytest.approx(sum(cosines) / 2)


def test_with_the_heads_memory_there_is_no_second_one():
    head_memory = make_mdrl().memory
    mdrl = make_mdrl()
    mdrl.take_memory(head_memory)
    assert mdrl.memory is head_memory
    assert not any("memory" in key for key in mdrl.state_dict())
    mdrl(make_inputs()[2])
    assert head_memory.seen.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_distributions": 0}, "MDRL: num_distributions is"),
        ({"momentum": 1.5}, "MDRL: momentum is"),
        ({"sinkhorn_iters": 0}, "MDRL: sinkhorn_iters is"),
        ({"sinkhorn_lambda": 0.001}, "MDRL: sinkhorn_lambda is"),
        ({"temperature": 0.0}, "MDRL: temperature is"),
        ({"weights": {"local": -1.0}}, "weights"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        make_mdrl(**options)
