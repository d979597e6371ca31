"""Taps record what modules get and give, and leave nothing behind."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.utils.checkpoint import checkpoint

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.ops.mask_classification import dense_logits
from regseg_d2.regularizers.recorder import TapRecorder, tap_channels


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
        ("predictor:masks[x", "side"),
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


class Caller(nn.Module):
    """Calls its parts in every way a network does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.stages = Stages()
        self.head = Head()

    def forward(self, x):
        maps = self.stages(self.first(x))
        return self.head(scale=2.0, features=maps[1], extra={"low": maps[0]})


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.grow = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())

    def forward(self, x):
        for _ in range(3):
            x = self.step(x)
        return [x, self.grow(x)]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.norm = nn.LayerNorm(6)

    def forward(self, *, scale, features, extra):
        x = self.norm(scale * features.movedim(1, -1))
        return {"logits": self.linear(x).movedim(-1, 1), "low": extra["low"]}


def test_every_kind_of_tap_and_its_channels():
    torch.manual_seed(0)
    network, x = Caller(), torch.randn(2, 3, 5, 7)
    runs = [network.first(x)]
    for _ in range(3):
        runs.append(network.stages.step(runs[-1]))
    grown = network.stages.grow(runs[3])
    normed = network.head.norm(2.0 * grown.movedim(1, -1)).movedim(-1, 1)
    logits = network.head.linear(normed.movedim(1, -1)).movedim(-1, 1)
    expected = {
        "stages:in": runs[0],
        "stages.step:in#0": runs[0],
        "stages.step:out#0": runs[1],
        "stages.step:out#1": runs[2],
        "stages.step:out#-1": runs[3],
        "stages:out[0]": runs[3],
        "stages:out[-1]": grown,
        "stages.grow:out": grown,
        "head:in[features]": grown,
        "head.norm:in[nhwc]": 2.0 * grown,
        "head.norm:out[nhwc]": normed,
        "head.linear:in[nhwc]": normed,
        "head.linear:out[nhwc]#-1": logits,
        "head:out[logits]": logits,
        "head:out[low]": runs[3],
    }
    before = [tensor.clone() for tensor in network.state_dict().values()]
    for tap, tensor in expected.items():
        with TapRecorder(network, [tap]).record(network) as taps:
            network(x)
        assert torch.equal(taps[tap], tensor), tap
        assert tap_channels(network, tap, "key") == tensor.shape[1], tap
    assert network.training
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("stages.step:out", r"ran twice or more in one forward pass; 'stages.step:out#-1' is the last run"),
        ("stages.step:out#3", "its module ran 3 times"),
        ("stages:out[2]", "the result has 2 entries"),
        ("stages:out", "handles a list; expected a tensor"),
        ("head:in", "handles a float; expected a tensor"),
        ("first:out[nhwc]", r"shape \(2, 4, 5, 7\); expected \(N, h, w, C\) with C = 4"),
        ("head:out[scores]", r"has no 'scores'; it has \['logits', 'low'\]"),
    ],
)
def test_taps_at_which_there_is_something_else(tap, message):
    network = Caller()
    with pytest.raises(UserError, match=message), TapRecorder(network, [tap]).record(network):
        network(torch.randn(2, 3, 5, 7))


def test_channels_of_a_sequence_where_the_network_takes_something_else():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.block = nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU())

        def forward(self, ids, scale):
            return self.block(scale * self.table(ids).movedim(-1, 1))

    with pytest.raises(ConfigError, match=r"key: tap 'block:out' is at a Sequential, .*forward failed"):
        tap_channels(Tokens(), "block:out", "key")
    example = (torch.zeros(1, 4, 4, dtype=torch.long), 2.0)
    assert tap_channels(Tokens(), "block:out", "key", example) == 5


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


# ---------------------------------------------------------------------------------------------- masks


class MaskNetwork(nn.Module):
    """Two classified masks an image, in the words of Detectron2's projects or of transformers."""

    def __init__(self, words):
        super().__init__()
        self.words = words
        self.encoder = nn.Conv2d(3, 4, 1)
        self.decoder = Decoder(words)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Decoder(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words = words
        self.masks = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        masks = self.masks(x)
        classes = masks.flatten(2)[..., :4].clone()
        name_of_classes, name_of_masks, name_of_earlier = self.words
        earlier = {name_of_classes: classes + 1, name_of_masks: masks.flip(-1)}
        return {name_of_classes: classes, name_of_masks: masks, name_of_earlier: [earlier]}


WORDS = [
    ("pred_logits", "pred_masks", "aux_outputs"),
    ("class_queries_logits", "masks_queries_logits", "auxiliary_logits"),
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("path", ["decoder", ""])
def test_classified_masks_are_read_as_logits_of_pixels(words, path):
    network, x = MaskNetwork(words), torch.randn(2, 3, 4, 4)
    taps = [f"{path}:masks", f"{path}:masks[0]"]
    with TapRecorder(network, taps).record(network) as recorded:
        output = network(x)
    earlier = output[words[2]][0]
    assert torch.equal(recorded[taps[0]], dense_logits(output[words[0]], output[words[1]]))
    assert torch.equal(recorded[taps[1]], dense_logits(earlier[words[0]], earlier[words[1]]))
    assert not torch.equal(recorded[taps[0]], recorded[taps[1]])


def test_what_is_no_classified_mask_is_named():
    network = MaskNetwork(("logits", "pred_masks", "aux"))
    for tap, message in [
        ("decoder:masks", r"is a dict with \['aux', 'logits', 'pred_masks'\]; expected classified masks"),
        ("decoder:masks[0]", "expected classified masks among its"),
        ("encoder:masks", r"is a Tensor with \[\]"),
    ]:
        with pytest.raises(UserError, match=message), TapRecorder(network, [tap]).record(network):
            network(torch.randn(2, 3, 4, 4))
    network = MaskNetwork(WORDS[0])
    with (
        pytest.raises(UserError, match="the list of auxiliary results has 1 entries"),
        TapRecorder(network, ["decoder:masks[4]"]).record(network),
    ):
        network(torch.randn(2, 3, 4, 4))
