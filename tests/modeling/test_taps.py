"""Taps record what modules get and give, and leave nothing behind."""

import pytest
import torch
from torch import nn

from regseg_d2.errors import ConfigError
from regseg_d2.modeling.taps import TapRecorder, tap_channels


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
