"""One loss, three ways to it: the mixin, attach, and the module called on features; equal to the last bit."""

import copy
import inspect
from functools import partial

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling import SemanticSegmentor, build_model

from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.regularizers import REGULARIZER, attach
from tests.helpers import NUM_CLASSES, small_batch, small_cfg

METHODS = sorted(name for name, _ in REGULARIZER)
SEED, STEPS = 7, 3
#: Options as the constructor has them; the config's keys are these in capitals.
OPTIONS = {
    "CAR": {"centers": "ema"},
    "ContrastSeg": {"memory": True, "memory_size": 9},
    "MDRL": {"num_distributions": 3},
    "PNE": {"no_negatives": "anchors"},
    "RegionContrast": {"bank_size": 5},
}


class Ways:
    """The same network and the same regularizer three times, with equal weights."""

    def __init__(self, method, head):
        keys = {f"REGULARIZERS__{method}__{k.upper()}": v for k, v in OPTIONS.get(method, {}).items()}
        torch.manual_seed(1)
        self.mixed = build_model(small_cfg(head, [method], SEED=SEED, **keys))
        with torch.no_grad():
            self.mixed.sem_seg_head.predictor.weight.mul_(100)  # several classes are predicted
        from_config = self.mixed.regularizers[method]
        plain = SemanticSegmentor(resolve_auto_norm(small_cfg(head)))
        plain.load_state_dict(
            {k: v for k, v in self.mixed.state_dict().items() if not k.startswith("regularizers.")}
        )
        by_hand = self.make_by_hand(method)
        self.attached = attach(
            copy.deepcopy(plain),
            copy.deepcopy(by_hand),
            classifier="sem_seg_head.predictor",
            features=from_config.feature_tap,
        )
        attached = self.attached.regularizers[by_hand.name]
        assert (attached.feature_tap, attached.channels) == (from_config.feature_tap, from_config.channels)
        attached.load_state_dict(from_config.state_dict())
        self.plain, self.module = plain, copy.deepcopy(attached)
        self.feature_tap = from_config.feature_tap

    @staticmethod
    def make_by_hand(method):
        kind = REGULARIZER.get(method)
        elsewhere = {"seed": SEED, "norm": partial(get_norm, "BN")}
        taken = inspect.signature(kind.__init__).parameters
        options = {name: value for name, value in elsewhere.items() if name in taken}
        return kind(NUM_CLASSES, **options, **OPTIONS.get(method, {}))

    def by_mixin(self, batch):
        losses = self.mixed(batch)
        return losses, self.mixed, self.mixed.regularizers

    def by_attach(self, batch):
        own, losses = self.attached(batch, labels=torch.stack([sample["sem_seg"] for sample in batch]))
        return own | losses, self.attached.model, self.attached.regularizers

    def by_call(self, batch):
        """Features are captured by hooks of the test."""
        seen, head = {}, self.plain.sem_seg_head
        where = self.plain.get_submodule(self.feature_tap.partition(":")[0])
        handles = [
            head.predictor.register_forward_hook(lambda _, args, out: seen.update(logits=out)),
            where.register_forward_hook(lambda _, args, out: seen.update(args=args, out=out)),
        ]
        own = self.plain(batch)
        for handle in handles:
            handle.remove()
        feature = seen["args"][0] if self.feature_tap.endswith(":in") else seen["out"]
        if isinstance(feature, dict):
            feature = feature[self.feature_tap.rpartition("[")[2].rstrip("]")]
        labels = torch.stack([sample["sem_seg"] for sample in batch])
        losses = self.module(feature, labels, logits=seen["logits"])
        return own | losses, self.plain, self.module


def run_step(way, seed):
    torch.manual_seed(seed)  # of dropout
    losses, network, regularizers = way(small_batch(size=(128, 128), seed=seed))
    for module in (network, regularizers):
        module.zero_grad()
    sum(losses.values()).backward()
    parts = {k: p.grad.clone() for k, p in network.named_parameters() if not k.startswith("regularizers.")}
    own = [p.grad.clone() for p in regularizers.parameters()]
    state = [buffer.clone() for buffer in regularizers.buffers()]
    return losses, parts, own, state


@pytest.mark.parametrize("head", ["FCN", "DeepLabV3Plus"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_state_are_the_same(method, head):
    ways = Ways(method, head)
    for step in range(STEPS):
        expected = run_step(ways.by_mixin, step)
        for way in (ways.by_attach, ways.by_call):
            losses, parts, own, state = run_step(way, step)
            assert losses.keys() == expected[0].keys()
            assert all(torch.equal(losses[key], expected[0][key]) for key in losses)
            assert parts.keys() == expected[1].keys()
            assert all(torch.equal(parts[key], expected[1][key]) for key in parts)
            assert len(own) == len(expected[2])
            assert all(map(torch.equal, own, expected[2]))
            assert len(state) == len(expected[3]) > 0
            assert all(map(torch.equal, state, expected[3]))
    # By now every loss regularizes something.
    assert all(loss > 0 for loss in losses.values())
