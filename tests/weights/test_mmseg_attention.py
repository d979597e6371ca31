"""mmsegmentation's non-local, CCNet and DANet heads: its tensors under our names, its logits."""

import pytest
import torch

from tests.weights.published_helpers import load_head

CASES = {
    "nonlocal_resnet": {"CONTEXT": "NonLocal", "CONCAT_INPUT": True},
    "ccnet": {"CONTEXT": "CrissCross", "CONCAT_INPUT": True},
    "danet": {"CONTEXT": "DualAttention", "PROJECTION": "", "DANET_KEY_CHANNELS": 4},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_mmsegmentations(name):
    fixture, head = load_head(name, CASES[name])
    with torch.no_grad():
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert fixture["logits"].abs().max() > 0.1
    torch.testing.assert_close(logits, fixture["logits"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_attention_counts_in_the_fixture(name):
    """Without it the logits are others, so that the test above says something about it."""
    fixture, head = load_head(name, CASES[name])
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if key.endswith(("gamma", "attention.out.norm.weight", "attention.out.norm.bias")):
                parameter.zero_()
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert (logits - fixture["logits"]).abs().max() > 0.01


def test_the_side_classifiers_of_danet_are_theirs():
    fixture, head = load_head("danet", CASES["danet"])
    context = head.context
    with torch.no_grad():
        x = fixture["features"][0]
        position = context.position_after(context.position_attention(context.position_before(x)))
        channel = context.channel_after(context.channel_attention(context.channel_before(x)))
        expected = fixture["side_logits"]
        torch.testing.assert_close(
            context.position_predictor(position), expected["position"], rtol=1e-6, atol=1e-5
        )
        torch.testing.assert_close(
            context.channel_predictor(channel), expected["channel"], rtol=1e-6, atol=1e-5
        )
