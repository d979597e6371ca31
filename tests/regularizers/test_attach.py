"""Regularizers on plain networks: values, training, and what PyTorch does to modules."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers import (
    CAR,
    MDRL,
    PNE,
    RCH,
    REGULARIZER,
    ContrastSeg,
    RegionContrast,
    RegularizerInput,
    RegularizerList,
    attach,
)

K, WIDTH = 4, 8
METHODS = sorted(name for name, _ in REGULARIZER)
SMALL = {
    "ContrastSeg": {"embedding_channels": 6, "memory": True, "memory_size": 5, "weights": {"contrast": 1.0}},
    "RCH": {"embedding_channels": 6, "weights": {"metric": 1.0}},
    "PNE": {"embedding_channels": 6, "no_negatives": "anchors"},
    "MDRL": {"num_distributions": 3, "weights": {"local": 1.0, "global": 1.0}},
    "RegionContrast": {"bank_size": 5, "weights": {"contrast": 1.0}},
    "CAR": {"centers": "ema"},
}


class Net(nn.Module):
    """An encoder and a head as torchvision writes them."""

    def __init__(self, checkpointed=False):
        super().__init__()
        convolution = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.encoder = nn.Sequential(convolution, nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.head = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(WIDTH, K, 1)
        )
        nn.init.normal_(self.head[3].weight, std=0.6)  # several classes are predicted from the start
        self.checkpointed = checkpointed

    def forward(self, images):
        if self.checkpointed:
            return checkpoint(self._logits, images, use_reentrant=False)
        return self._logits(images)

    def _logits(self, images):
        return self.head(self.encoder(images))


def make(names=METHODS, checkpointed=False, **options):
    torch.manual_seed(0)
    regularizers = [REGULARIZER.get(name)(K, **SMALL.get(name, {})) for name in names]
    return attach(Net(checkpointed), regularizers, classifier="head.3", **options)


def make_batch(seed=0, size=16):
    """Images whose colour says the class of a quarter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (2, 2, 2), generator=generator)
    labels = labels.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2)
    colours = torch.linspace(-1, 1, K)[labels].unsqueeze(1).repeat(1, 3, 1, 1)
    images = colours * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, 255, labels)
    return images + 0.3 * torch.randn(images.shape, generator=generator), labels


def run_once(regularized, images, labels, seed):
    torch.manual_seed(seed)  # of dropout
    output, losses = regularized(images, labels=labels)
    regularized.zero_grad()
    (sum(losses.values()) + output.square().mean()).backward()
    gradients = [parameter.grad.clone() for parameter in regularized.parameters()]
    return {key: value.detach() for key, value in losses.items()}, gradients


def run(regularized, steps=3, seed=0):
    """Losses and gradients of some steps, with dropout's numbers the same for all."""
    return [run_once(regularized, *make_batch(seed + step), step) for step in range(steps)]


def assert_same(ours, theirs):
    for (losses, gradients), (other_losses, other_gradients) in zip(ours, theirs, strict=True):
        assert losses.keys() == other_losses.keys()
        assert all(torch.equal(losses[key], other_losses[key]) for key in losses)
        assert all(map(torch.equal, gradients, other_gradients))


# -------------------------------------------------------------------------------------------- losses


def test_losses_are_those_of_the_modules_called_by_hand():
    regularized = make()
    by_hand = copy.deepcopy(regularized)
    images, labels = make_batch()
    for _ in range(2):
        torch.manual_seed(1)
        output, losses = regularized(images, labels=labels)
        torch.manual_seed(1)
        feature = by_hand.model.head[:2](by_hand.model.encoder(images))
        logits = by_hand.model.head[2:](feature)
        assert torch.equal(logits, output)
        inputs = {"features": feature, "labels": labels}
        expected = {}
        for regularizer in by_hand.regularizers.values():
            extra = {"logits": logits} if regularizer.reads_logits else {}
            expected |= regularizer(**inputs, **extra)
        assert losses.keys() == expected.keys()
        assert all(torch.equal(losses[key], expected[key]) for key in losses)
    assert {key for key, loss in losses.items() if loss == 0} <= {"loss_car_inter_c2c"}


def test_a_list_is_the_sum_of_its_parts():
    regularizers = [CAR(K), PNE(K, WIDTH, embedding_channels=6), CAR(K, name="second", pool=2)]
    together = RegularizerList(copy.deepcopy(regularizers))
    assert list(together) == ["car", "pne", "second"]
    feature, logits = torch.randn(2, WIDTH, 8, 8), torch.randn(2, K, 8, 8)
    labels = make_batch()[1]
    losses = together(feature, labels, logits=logits)
    expected = regularizers[0](feature, labels) | regularizers[1](feature, labels, logits=logits)
    expected |= regularizers[2](feature, labels)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[key], expected[key]) for key in losses)
    with pytest.raises(ConfigError, match=r"called \['car', 'car'\]; give one of two a name"):
        RegularizerList([CAR(K), CAR(K)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("beyond", [K, K + 3, 254, -2])
def test_labels_that_are_no_class_are_void(method, beyond):
    void, other = make([method]), make([method])
    for step in range(2):
        images, labels = make_batch(step)
        theirs = run_once(void, images, labels, step)
        ours = run_once(other, images, torch.where(labels == 255, beyond, labels).to(torch.int32), step)
        assert_same([ours], [theirs])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    regularized = make([method])
    optimizer = torch.optim.SGD(regularized.parameters(), lr=0.1)
    history = []
    for step in range(20):
        images, labels = make_batch(step % 4)
        output, losses = regularized(images, labels=labels)
        full = F.interpolate(output, size=labels.shape[-2:], mode="bilinear")
        loss = sum(losses.values()) + F.cross_entropy(full, labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        assert torch.isfinite(loss)
    # The memories are full after some steps; what is compared has the same images.
    assert sum(history[-4:]) < sum(history[4:8])


# ----------------------------------------------------------------------------------- what is left of it


def test_evaluation_and_training_without_labels_are_the_model():
    regularized, plain = make(), make().model
    images, _ = make_batch()
    torch.manual_seed(1)
    ours = regularized(images)
    torch.manual_seed(1)
    assert torch.equal(ours, plain(images))
    regularized.eval(), plain.eval()
    assert torch.equal(regularized(images, labels=make_batch()[1]), plain(images))
    assert all(r.num_forwards == 0 for r in regularized.regularizers.values())


class WithOwnLoss(Net):
    """Takes labels and returns its loss, as the networks of Hugging Face do."""

    def forward(self, images, labels=None):
        logits = super().forward(images)
        full = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        return logits, None if labels is None else F.cross_entropy(full, labels, ignore_index=255)


def test_a_network_that_takes_labels_gets_them():
    torch.manual_seed(0)
    regularized = attach(WithOwnLoss(), CAR(K), classifier="head.3")
    images, labels = make_batch()
    torch.manual_seed(1)
    (_, own_loss), losses = regularized(images, labels=labels)
    torch.manual_seed(1)
    assert torch.equal(own_loss, regularized.model(images, labels)[1])
    assert losses["loss_car_intra_c2p"] > 0
    assert regularized(images)[1] is None
    regularized.eval()
    assert torch.equal(regularized(images, labels=labels)[1], regularized.model(images, labels)[1])


def test_the_plain_state_dict_is_that_of_the_model():
    regularized, plain = make(), Net()
    state = regularized.plain_state_dict()
    assert list(state) == list(plain.state_dict())
    assert state._metadata == plain.state_dict()._metadata
    plain.load_state_dict(state, strict=True)
    other = make()
    other.load_state_dict(regularized.state_dict(), strict=True)


# ---------------------------------------------------------------------------------- what finds the place


def test_channels_are_found_from_the_module_or_a_forward():
    torch.manual_seed(0)
    by_module = attach(Net(), PNE(K), classifier="head.3")
    assert by_module.regularizers["pne"].feature_tap == "head.2:in"
    assert by_module.regularizers["pne"].channels == WIDTH
    model = Net()
    before = copy.deepcopy(model.state_dict())
    by_forward = attach(model, PNE(K), features="encoder:out", logits="head.3:out")
    assert by_forward.regularizers["pne"].projection.hidden.in_channels == WIDTH
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.isfinite(by_forward(make_batch()[0], labels=make_batch()[1])[1]["loss_pne_contrast"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pne: nothing says where its features are; give classifier=… or features=…"),
        ({"features": "encoder:out"}, "pne: nothing says where its logits are"),
        ({"classifier": "head.9"}, "no module 'head.9'.*near names are .*'head.0'"),
        ({"features": "encodr:out", "logits": "head.3:out"}, "near names are .*'encoder'"),
    ],
)
def test_what_is_missing_is_said(options, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        attach(Net(), PNE(K), **options)
    if "classifier" not in options and "features" in options and "logits" not in options:
        attach(Net(), CAR(K), **options)  # nobody looks at predictions


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (PNE(K + 1), r"num_classes is {'car': 4, 'pne': 5}; regularizers that see the same labels need"),
        (
            CAR(K, name="other", ignore_index=0),
            r"ignore_index is {'car': 255, 'other': 0}; regularizers that",
        ),
    ],
)
def test_regularizers_of_other_labels_are_refused(second, message):
    with pytest.raises(ConfigError, match=message):
        attach(Net(), [CAR(K), second], classifier="head.3")


def test_errors_of_plain_calls():
    feature, labels = torch.randn(2, WIDTH, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long)
    for regularizer, arguments, message in (
        (CAR(K), (feature, None), "car was called without labels"),
        (PNE(K, WIDTH), (feature, labels), "pne looks at predictions, and was called without logits"),
        (RCH(K), (feature, labels), "without logits"),
        (MDRL(K), (feature, labels), f"channels is not known, .* give channels={WIDTH} to MDRL"),
        (MDRL(K, 3), (feature, labels), f"the feature has {WIDTH} channels; expected 3"),
        (CAR(K), (feature, labels.float()), "labels are torch.float32 .* integer type"),
        (CAR(K), (feature, labels.numpy()), "labels are a ndarray; expected a tensor"),
        (CAR(K), (feature[:0], labels[:0]), r"labels are torch.int64 of the shape \(0, 8, 8\)"),
        (CAR(K), (feature, labels[0]), r"labels are torch.int64 of the shape \(8, 8\)"),
        (CAR(K), (feature, labels[:1]), "there are labels of 1 images"),
        (CAR(K), (feature[0], labels), r"features is of the shape \(8, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            regularizer(*arguments)
    with pytest.raises(ValueError, match="there are logits of 7 classes; expected 4"):
        RegionContrast(K, WIDTH)(feature, labels, logits=torch.randn(2, 7, 4, 4))
    with pytest.raises(ValueError, match="labels are of 3 classes; expected 4"):
        CAR(K)(RegularizerInput({"features": feature}, labels, 3))
    # These look at no predictions.
    RegionContrast(K, WIDTH, center="gt_mean")(feature, labels)
    ContrastSeg(K, WIDTH, anchors="random")(feature, labels)


# ----------------------------------------------------------------------------- what PyTorch does to modules


def test_checkpointing_changes_nothing():
    assert_same(run(make(checkpointed=True)), run(make()))


def test_checkpoint_wrappers_that_come_after_attach_change_nothing():
    wrapped = make()
    apply_activation_checkpointing(wrapped.model, check_fn=lambda part: isinstance(part, nn.Sequential))
    assert type(wrapped.model.head).__name__ == "CheckpointWrapper"
    assert_same(run(wrapped), run(make()))
    assert list(wrapped.plain_state_dict()) == list(Net().state_dict())


def test_a_copy_of_the_network_alone_does_not_listen():
    """As a moving average of the weights is one."""
    regularized, expected = make(), make()
    average = AveragedModel(regularized.model)
    for step in range(3):
        images, labels = make_batch(step)
        ours, theirs = run_once(regularized, images, labels, step), run_once(expected, images, labels, step)
        assert_same([ours], [theirs])
        average.update_parameters(regularized.model)
        average(images)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_goes_on_as_the_original_would(clone):
    regularized = make()
    run(regularized)
    cloned = clone(regularized)
    assert_same(run(cloned, seed=5), run(regularized, seed=5))
    state = cloned.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in regularized.state_dict().items())


def test_autocast_and_bfloat16():
    regularized = make()
    images, labels = make_batch()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            output, losses = regularized(images, labels=labels)
    assert output.dtype == torch.bfloat16
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    regularized.to(torch.bfloat16)
    assert {p.dtype for p in regularized.model.parameters()} == {torch.bfloat16}
    kept = [*regularized.regularizers.parameters(), *regularized.regularizers.buffers()]
    assert {tensor.dtype for tensor in kept} <= {torch.float32, torch.long}
    before = regularized.regularizers["car"].ema.centers.clone()
    output, losses = regularized(images.bfloat16(), labels=labels)
    assert output.dtype == torch.bfloat16
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert not torch.equal(before, regularized.regularizers["car"].ema.centers)
    assert {p.dtype for p in regularized.double().parameters()} == {torch.float64}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_number_of_regularizers_is_compiled_once():
    torch._dynamo.reset()
    regularized = make([*METHODS])
    regularized.compile(backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(regularized)


@pytest.mark.parametrize("what", ["whole", "network", "in place", "checkpointed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_is_equal_to_eager(what):
    torch._dynamo.reset()
    eager, regularized = make(), make(checkpointed=what == "checkpointed")
    # A first forward without labels: its graph must not be taken for one with losses.
    images, _ = make_batch()
    if what == "network":
        regularized.model = torch.compile(regularized.model, backend="aot_eager")
    compiled = torch.compile(regularized, backend="aot_eager") if what == "whole" else regularized
    if what in ("in place", "checkpointed"):
        regularized.compile(backend="aot_eager")
    for each in (compiled, eager):
        torch.manual_seed(9)
        each(images)
    for (losses, gradients), (other_losses, other_gradients) in zip(run(compiled), run(eager), strict=True):
        for key, value in other_losses.items():
            torch.testing.assert_close(losses[key], value, rtol=1e-6, atol=1e-7)
        for gradient, other in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)
    if what == "checkpointed":
        # The forward that is run again moves the running statistics of batch norm again.
        regularized.load_state_dict(eager.state_dict())
    compiled.eval(), eager.eval()
    torch.testing.assert_close(compiled(images), eager(images), rtol=1e-6, atol=1e-7)


def test_a_baseline_trains_in_the_same_loop():
    """Without a regularizer there is a dict without losses, not the output alone."""
    model = attach(nn.Conv2d(3, 4, 1), [])
    images, labels = torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    output, losses = model(images, labels=labels)
    assert losses == {}
    torch.testing.assert_close(output, model.model(images), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(images, labels=labels), output, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_forward_that_overflows_leaves_no_trace(method, value):
    """A loop skips such a step, as GradScaler does; nothing that is kept may stay ruined by it."""
    regularized = make([method])
    for step in range(2):
        run_once(regularized, *make_batch(step), step)
    images, labels = make_batch(2)
    spoil = regularized.model.head[1].register_forward_hook(lambda module, args, result: result * value)
    regularized(images, labels=labels)
    spoil.remove()
    assert all(torch.isfinite(kept).all() for kept in regularized.regularizers.state_dict().values())
    losses, gradients = run_once(regularized, *make_batch(3), 3)
    assert all(map(torch.isfinite, losses.values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_detached_network_is_the_one_that_was_given():
    for regularized in (make(), copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        run(regularized, steps=1)
        network, images = regularized.eval().detach(), make_batch()[0]
        assert b"regseg_d2" not in pickle.dumps(network.head)
        scripted = torch.jit.script(network.head)
        torch.testing.assert_close(scripted(network.encoder(images)), regularized(images), rtol=0, atol=0)
        assert regularized.detach() is network
        with pytest.raises(RuntimeError, match="were not reached"):
            regularized.train()(images, labels=make_batch()[1])


def test_a_list_may_be_attached():
    parts = [ContrastSeg(K), CAR(K)]
    regularized = attach(Net(), RegularizerList(parts), classifier="head.3")
    assert regularized.regularizers.all() == parts
    images, labels = make_batch()
    _, losses = regularized(images, labels=labels)
    assert list(losses) == [*parts[0].loss_keys, *parts[1].loss_keys]


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), -1.0])
def test_weights_that_ruin_the_loss_are_refused(weight):
    with pytest.raises(ConfigError, match="weights is .*; expected finite numbers >= 0"):
        CAR(K, weights={"intra_c2p": weight})
