"""FCN, PSPNet and DeepLabV3: mmsegmentation's tensors and logits."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_heads import HEAD_RULES
from regseg_d2.weights.renaming import prefixed, rename_all
from tests.helpers import small_cfg

FIXTURES = Path(__file__).parent / "fixtures"
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
    rules = prefixed(HEAD_RULES[keys["CONTEXT"]], r"decode_head\.", "")
    renamed, unknown = rename_all(fixture["state"], rules)
    assert unknown == []
    head.load_state_dict(renamed, strict=True)
    return fixture, head.eval()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_mmsegmentations(name):
    fixture, head = load(name)
    with torch.no_grad():
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert fixture["logits"].std() > 0.1
    torch.testing.assert_close(logits, fixture["logits"], rtol=0, atol=1e-5)


def test_the_order_of_the_branches_of_aspp_matters():
    fixture, head = load("deeplabv3_head")
    with torch.no_grad():
        head.projection.conv.weight.copy_(fixture["state"]["decode_head.bottleneck.conv.weight"])
        logits, _ = head.layers({"res5": fixture["features"][0]})
    assert (logits - fixture["logits"]).abs().max() > 0.1
