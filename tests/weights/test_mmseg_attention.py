"""mmsegmentation's non-local, CCNet and DANet heads: its tensors under our names, its logits."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_heads import HEAD_RULES
from regseg_d2.weights.renaming import rename_all
from tests.helpers import small_cfg

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    "nonlocal_resnet": {"CONTEXT": "NonLocal", "CONCAT_INPUT": True},
    "ccnet": {"CONTEXT": "CrissCross", "CONCAT_INPUT": True},
    "danet": {"CONTEXT": "DualAttention", "PROJECTION": "", "DANET_KEY_CHANNELS": 4},
}


def load(name):
    """The fixture, and our head with its tensors."""
    fixture = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    theirs = fixture["config"]["decode_head"]
    keys = {
        **CASES[name],
        "CONTEXT_CHANNELS": theirs["channels"],
        "CONVS_DIM": theirs["channels"],
        "NUM_CLASSES": theirs["num_classes"],
        "IN_FEATURES": ["res5"],
    }
    cfg = small_cfg("FCN", **{f"SEM_SEG_HEAD__{key}": value for key, value in keys.items()})
    head = ContextHead(resolve_auto_norm(cfg), {"res5": ShapeSpec(channels=theirs["in_channels"], stride=8)})
    state = {key.removeprefix("decode_head."): value for key, value in fixture["state"].items()}
    renamed, unknown = rename_all(state, HEAD_RULES[keys["CONTEXT"]])
    assert unknown == []
    head.load_state_dict(renamed, strict=True)
    return fixture, head.eval()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_mmsegmentations(name):
    fixture, head = load(name)
    with torch.no_grad():
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert fixture["logits"].abs().max() > 0.1
    torch.testing.assert_close(logits, fixture["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_attention_counts_in_the_fixture(name):
    """Without it the logits are others, so that the test above says something about it."""
    fixture, head = load(name)
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if key.endswith(("gamma", "attention.out.norm.weight", "attention.out.norm.bias")):
                parameter.zero_()
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert (logits - fixture["logits"]).abs().max() > 0.01


def test_the_side_classifiers_of_danet_are_theirs():
    fixture, head = load("danet")
    context = head.context
    with torch.no_grad():
        x = fixture["features"][0]
        position = context.position_after(context.position_attention(context.position_before(x)))
        channel = context.channel_after(context.channel_attention(context.channel_before(x)))
        expected = fixture["side_logits"]
        torch.testing.assert_close(
            context.position_predictor(position), expected["position"], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(context.channel_predictor(channel), expected["channel"], rtol=0, atol=1e-5)
