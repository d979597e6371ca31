"""FCN, PSPNet and DeepLabV3: mmsegmentation's tensors and logits."""

import pytest
import torch

from tests.weights.published_helpers import load_head

CASES = {
    "fcn_head": {"CONTEXT": "FCN", "FCN_NUM_CONVS": 2, "CONCAT_INPUT": True},
    "pspnet_head": {"CONTEXT": "PPM", "PROJECTION": ""},
    "deeplabv3_head": {
        "CONTEXT": "ASPP",
        "ASPP_NARROW": False,
        "ASPP_DILATIONS": [2, 3, 4],
        "ASPP_DROPOUT": 0.0,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_mmsegmentations(name):
    fixture, head = load_head(name, CASES[name])
    with torch.no_grad():
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert fixture["logits"].std() > 0.1
    torch.testing.assert_close(logits, fixture["logits"], rtol=1e-6, atol=1e-5)


def test_the_order_of_the_branches_of_aspp_matters():
    fixture, head = load_head("deeplabv3_head", CASES["deeplabv3_head"])
    with torch.no_grad():
        head.projection.conv.weight.copy_(fixture["state"]["decode_head.bottleneck.conv.weight"])
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert (logits - fixture["logits"]).abs().max() > 0.1
