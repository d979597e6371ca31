"""A battery over every registered regularizer x head: the promises of the architecture."""

import copy
from fractions import Fraction

import pytest
import torch
from detectron2.modeling import SemanticSegmentor, build_model

from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.regularizers import REGULARIZER, RegularizerInput
from regseg_d2.regularizers.recorder import TapRecorder
from regseg_d2.segmentor.regularizers import build_label_sampling
from tests.helpers import HEADS, IGNORE, NUM_CLASSES, small_batch, small_cfg
from tests.references.labels import labels_at_cells

REGULARIZERS = sorted(name for name, _ in REGULARIZER)
# Images in which several classes are right somewhere, as PNE's negatives have to be.
BIG_ENOUGH = (128, 128)
PAIRS = [(regularizer, head) for regularizer in REGULARIZERS for head in HEADS]


def build(head, regularizers=(), **overrides):
    torch.manual_seed(1)
    return build_model(small_cfg(head, regularizers, **overrides))


def build_with_memory(head, regularizer):
    """A model after one step, so that memories are not empty, with a state that is worth keeping.

    Its predictions differ from pixel to pixel, so that more than one class is right somewhere.
    """
    model = build(head, [regularizer])
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.mul_(100)
    model(small_batch(seed=7))
    return model


def predict_always(model, class_id):
    """Makes the classifier say one class of every pixel."""
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.zero_()
        model.sem_seg_head.predictor.bias[class_id] = 5.0


def test_the_battery_covers_what_is_registered():
    assert {"CAR", "ContrastSeg", "MDRL", "PNE", "RCH", "RegionContrast"} <= set(REGULARIZERS)
    assert len(PAIRS) == len(REGULARIZERS) * 6


@pytest.mark.parametrize(("regularizer", "head"), PAIRS)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_have_the_declared_keys_and_finite_gradients(regularizer, head, autocast):
    model = build_with_memory(head, regularizer)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(small_batch(size=BIG_ENOUGH))
    declared = model.regularizers[regularizer].loss_keys
    assert set(declared) < set(losses)
    for key in declared:
        assert losses[key].dtype == torch.float32
        assert losses[key].shape == ()
        assert torch.isfinite(losses[key])
        assert losses[key] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("regularizer", "head"), PAIRS)
def test_own_parameters_and_the_network_get_gradients_from_the_regularizer_alone(regularizer, head):
    model = build_with_memory(head, regularizer)
    losses = model(small_batch(size=BIG_ENOUGH))
    sum(losses[key] for key in model.regularizers[regularizer].loss_keys).backward()
    assert all(p.grad is not None for p in model.regularizers.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


@pytest.mark.parametrize(("regularizer", "head"), PAIRS)
@pytest.mark.parametrize("labels", ["void", "one_class", "class_zero", "all_right", "all_wrong"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_degenerate_batches_are_finite_and_attached(regularizer, head, labels, batch_size):
    model = build_with_memory(head, regularizer)
    if labels.startswith("all_"):
        predict_always(model, 2 if labels == "all_right" else 0)
        labels = "one_class"
    if batch_size == 1:
        # Batch norm of an image-pooling branch needs more than one value in training.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    losses = model(small_batch(batch_size, labels=labels))
    own = {key: losses[key] for key in model.regularizers[regularizer].loss_keys}
    if labels == "void":
        assert all(value.item() == 0.0 for value in own.values())
    for key, value in own.items():
        assert torch.isfinite(value), key
        assert value.requires_grad, key
    sum(own.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("regularizer", "head"), PAIRS)
def test_state_is_frozen_in_eval_and_without_gradient(regularizer, head):
    model = build(head, [regularizer])
    before = copy.deepcopy(model.regularizers.state_dict())
    model.eval()
    model(small_batch())
    model.train()
    with torch.no_grad():
        losses = model(small_batch())
    assert set(model.regularizers[regularizer].loss_keys) < set(losses)
    after = model.regularizers.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    model(small_batch())
    assert model.regularizers[regularizer].num_forwards.item() == 1


@pytest.mark.parametrize("head", HEADS)
def test_all_methods_together_in_any_order(head):
    """Combined losses are those of each method alone: nothing that is shared is changed by another."""
    together = build(head, REGULARIZERS[::-1])
    assert list(together.regularizers) == REGULARIZERS
    batches = [small_batch(seed=seed) for seed in range(3)]
    for batch in batches:
        torch.manual_seed(3)
        combined = together(batch)
    assert set(combined) >= {key for r in together.regularizers.values() for key in r.loss_keys}
    for name in REGULARIZERS:
        alone = build(head, REGULARIZERS)
        for other in set(REGULARIZERS) - {name}:
            del alone.regularizers[other]
        for batch in batches:
            torch.manual_seed(3)
            losses = alone(batch)
        for key in alone.regularizers[name].loss_keys:
            assert torch.equal(losses[key], combined[key]), key


@pytest.mark.parametrize(("regularizer", "head"), PAIRS)
def test_eval_is_bit_equal_to_the_plain_segmentor_and_the_stripped_checkpoint_loads(regularizer, head):
    cfg = small_cfg(head, [regularizer])
    torch.manual_seed(1)
    model = build_model(cfg)
    model(small_batch())
    stripped = {
        key: value for key, value in model.state_dict().items() if not key.startswith("regularizers.")
    }
    torch.manual_seed(2)
    plain = SemanticSegmentor(resolve_auto_norm(cfg))
    plain.load_state_dict(stripped, strict=True)
    # The pooling of Detectron2's DeepLab heads takes multiples of the training crop only.
    for size in [(64, 64), (64, 128), (128, 64) if head.startswith("DeepLab") else (70, 50)]:
        batch = small_batch(1, size=size)
        ours, theirs = model.eval()(batch), plain.eval()(batch)
        assert torch.equal(ours[0]["sem_seg"], theirs[0]["sem_seg"])
        assert ours[0]["sem_seg"].shape[-2:] == size
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("head", HEADS)
def test_without_regularizers_training_is_that_of_the_plain_segmentor(head):
    cfg = small_cfg(head)
    torch.manual_seed(1)
    model = build_model(cfg)
    plain = SemanticSegmentor(resolve_auto_norm(cfg))
    plain.load_state_dict(model.state_dict(), strict=True)
    for network in (model, plain):
        torch.manual_seed(3)
        network.losses = network(small_batch())
        sum(network.losses.values()).backward()
    assert model.losses.keys() == plain.losses.keys()
    gradients = dict(plain.named_parameters())
    assert all(torch.equal(p.grad, gradients[name].grad) for name, p in model.named_parameters())


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_regularizer_does_not_change_the_networks_own_losses(regularizer):
    losses = {}
    for names in ([], [regularizer]):
        model = build("FCN", names)
        torch.manual_seed(3)
        losses[len(names)] = model(small_batch())
    assert torch.equal(losses[0]["loss_sem_seg"], losses[1]["loss_sem_seg"])


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("rule", ["center", "corner", "majority"])
def test_labels_come_down_by_the_rule_of_the_config(regularizer, rule):
    """As if the labels had been brought to the size of the feature cell by cell; center is the default."""
    model = build_with_memory("FCN", regularizer)
    module = model.regularizers[regularizer]
    recorder = TapRecorder(model, module.taps)
    with torch.no_grad(), recorder.record(model) as taps:
        model(small_batch(size=BIG_ENOUGH))
    size = taps[module.feature_tap].shape[-2:]
    targets = torch.randint(0, NUM_CLASSES, (2, 9, 13), generator=torch.Generator().manual_seed(0))
    targets = targets.repeat_interleave(11, 1).repeat_interleave(7, 2)
    targets[0, :20, :30] = IGNORE
    sampling = build_label_sampling(small_cfg("FCN", REGULARIZERS__LABELS=rule))
    options = {} if rule == "center" else {"label_sampling": sampling}
    by_cell = labels_at_cells(targets, size, rule, IGNORE, NUM_CLASSES, Fraction(1, 2))
    results = [
        copy.deepcopy(module)(RegularizerInput(taps, labels, NUM_CLASSES, ignore_value, **given))
        for labels, ignore_value, given in ((targets, IGNORE, options), (by_cell, -1, {}))
    ]
    for key in module.loss_keys:
        assert results[0][key] > 0
        torch.testing.assert_close(results[0][key], results[1][key])
