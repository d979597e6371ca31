"""Taps record what modules get and give, and leave nothing behind."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.utils.checkpoint import checkpoint

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.regularizers.taps import TapRecorder, tap_channels


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.predictor = nn.Conv2d(4, 2, 1)
        self.unused = nn.Identity()

    def forward(self, x, times=1):
        x = self.encoder(x).relu()
        for _ in range(times):
            y = self.predictor(x)
        return y


def test_records_inputs_and_outputs_with_their_graph():
    network, x = Network(), torch.randn(1, 3, 2, 2)
    recorder = TapRecorder(network, ["predictor:in", "predictor:out", "encoder:out"])
    with recorder.record(network) as taps:
        y = network(x)
    assert torch.equal(taps["predictor:out"], y)
    assert torch.equal(taps["encoder:out"].relu(), taps["predictor:in"])
    taps["predictor:in"].sum().backward()
    assert network.encoder.weight.grad.abs().sum() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_hooks_go_when_the_forward_fails():
    network = Network()
    with pytest.raises(RuntimeError), TapRecorder(network, ["predictor:in"]).record(network):
        network(torch.randn(1, 7, 2, 2))
    assert not network.predictor._forward_pre_hooks


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("predictr:in", "predictor"),
        ("head.predictor:in", "predictor"),
        ("predictor", "side"),
        ("predictor:input", "side"),
        (":in", "no module"),
    ],
)
def test_wrong_taps_are_named_with_what_is_near(tap, message):
    with pytest.raises(ConfigError, match=message):
        TapRecorder(Network(), [tap])


def test_a_module_that_runs_twice_or_never_is_an_error():
    network = Network()
    with pytest.raises(RuntimeError, match="twice"), TapRecorder(network, ["predictor:in"]).record(network):
        network(torch.randn(1, 3, 2, 2), times=2)
    with (
        pytest.raises(RuntimeError, match="unused:out"),
        TapRecorder(network, ["unused:out"]).record(network),
    ):
        network(torch.randn(1, 3, 2, 2))


def test_channels():
    assert tap_channels(Network(), "predictor:in", "key") == 4
    assert tap_channels(Network(), "predictor:out", "key") == 2
    with pytest.raises(ConfigError, match="Identity"):
        tap_channels(Network(), "unused:in", "key")


# ------------------------------------------------------------------------------------- entries of dicts


class Backbone(nn.Module):
    """Returns a dict, as Detectron2's backbones do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return {"res4": x, "res5": x.relu() * 2, "p-5.x": x + 1}

    def output_shape(self):
        return {"res4": ShapeSpec(channels=4, stride=8), "res5": ShapeSpec(channels=4, stride=16)}


class DictNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.predictor = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.predictor(self.backbone(x)["res5"])


def test_entries_of_a_dict_are_recorded_with_their_graph():
    network, x = DictNetwork(), torch.randn(1, 3, 2, 2)
    recorder = TapRecorder(network, ["backbone:out[res4]", "backbone:out[res5]", "backbone:out[p-5.x]"])
    with recorder.record(network) as taps:
        network(x)
    convolved = network.backbone.conv(x)
    assert torch.equal(taps["backbone:out[res4]"], convolved)
    assert torch.equal(taps["backbone:out[res5]"], convolved.relu() * 2)
    assert torch.equal(taps["backbone:out[p-5.x]"], convolved + 1)
    taps["backbone:out[res4]"].sum().backward()
    assert network.backbone.conv.weight.grad.abs().sum() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_channels_of_an_entry():
    assert tap_channels(DictNetwork(), "backbone:out[res4]", "key") == 4
    assert tap_channels(DictNetwork(), "backbone:out[res5]", "key") == 4


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (
            "backbone:out[res6]",
            r"key: tap .*Backbone, which says of no output 'res6'.*'res5'.*\['res4', 'res5'\]",
        ),
        (
            "predictor:out[res5]",
            "a Conv2d, which does not tell .*forward failed: .*expected a dict with 'res5'",
        ),
        ("backbone:in[res5]", "forward failed: .* first argument is a Tensor; expected a dict with 'res5'"),
        ("backbone:inn", "has no side; expected .*out\\[<name>\\]"),
        ("backbone:out[]", "has no side"),
        ("backbone:out[res5", "has no side"),
        ("backbon:out[res5]", "no module 'backbon'; near names are \\['backbone'"),
    ],
)
def test_wrong_entries(tap, message):
    with pytest.raises(ConfigError, match=message):
        tap_channels(DictNetwork(), tap, "key")


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("backbone:out[res6]", r"has no 'res6'; it has \['p-5.x', 'res4', 'res5'\]"),
        ("predictor:out[res5]", "the result is a Tensor; expected a dict with 'res5'"),
        ("backbone:out", "handles a dict; expected a tensor"),
    ],
)
def test_entries_that_are_not_there_when_the_network_runs(tap, message):
    network = DictNetwork()
    with (
        pytest.raises(RuntimeError, match=message),
        TapRecorder(network, [tap]).record(network),
    ):
        network(torch.randn(1, 3, 2, 2))
    assert not any(m._forward_hooks for m in network.modules())


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.predictor = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x), self.predictor(x)


@pytest.mark.parametrize("size", [(3, 5), (4, 4)])
def test_a_linear_layer_with_its_channels_last_is_no_map(size):
    network = ChannelsLast()
    with (
        pytest.raises(
            UserError, match=r"'predictor:in' is at a linear layer.*channels last.*1x1 convolution"
        ),
        TapRecorder(network, ["predictor:in"]).record(network),
    ):
        network(torch.randn(2, *size, 4))


class Wrong(nn.Conv2d):
    """Says another number of channels than it gives."""

    def forward(self, x):
        return super().forward(x)[:, :3]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)), r"'1:out' has a tensor of the shape \(2, 4, 4\)"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), Wrong(4, 5, 1)),
            r"shape \(2, 3, 2, 2\).* with C = 5, as its module",
        ),
    ],
)
def test_a_tensor_of_another_shape_is_named(module, message):
    with pytest.raises(UserError, match=message), TapRecorder(module, ["1:out"]).record(module):
        module(torch.randn(2, 3, 2, 2))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.predictor = nn.Conv2d(4, 2, 1)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        head = nn.Sequential(self.encoder, self.predictor)
        return checkpoint(head, x.requires_grad_(), use_reentrant=self.use_reentrant)


def test_reentrant_checkpointing_cuts_the_graph_of_a_tap_and_is_refused():
    network = Checkpointed(use_reentrant=True)
    with (
        pytest.raises(UserError, match="gradients are off.*use_reentrant=False"),
        TapRecorder(network, ["predictor:in"]).record(network),
    ):
        network(torch.randn(2, 3, 2, 2))
    network = Checkpointed(use_reentrant=False)
    with TapRecorder(network, ["predictor:in"]).record(network) as taps:
        network(torch.randn(2, 3, 2, 2))
    taps["predictor:in"].sum().backward()
    assert network.encoder.weight.grad.abs().sum() > 0
    with torch.no_grad(), TapRecorder(network, ["predictor:in"]).record(network):
        network(torch.randn(2, 3, 2, 2))  # PreciseBN
