"""EncNet with mmsegmentation's weights: the same logits, of pixels and of the classes' presence."""

from pathlib import Path

import torch
from detectron2.layers import ShapeSpec

from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_heads import HEAD_RULES
from regseg_d2.weights.renaming import rename_all
from tests.helpers import small_cfg

FIXTURE = Path(__file__).parent / "fixtures" / "encnet.pt"


@torch.no_grad()
def test_logits():
    fixture = torch.load(FIXTURE, weights_only=True)
    theirs = fixture["config"]["decode_head"]
    cfg = small_cfg(
        "FCN",
        SEM_SEG_HEAD__NUM_CLASSES=theirs["num_classes"],
        SEM_SEG_HEAD__IN_FEATURES=["res5"],
        SEM_SEG_HEAD__CONTEXT="Encoding",
        SEM_SEG_HEAD__CONTEXT_CHANNELS=theirs["channels"],
        SEM_SEG_HEAD__ENCNET_NUM_CODES=theirs["num_codes"],
        SEM_SEG_HEAD__PROJECTION="",
    )
    channels = theirs["in_channels"][-1]
    head = ContextHead(resolve_auto_norm(cfg), {"res5": ShapeSpec(channels=channels, stride=8)}).eval()
    prefix = "decode_head."
    state = {key.removeprefix(prefix): v for key, v in fixture["state"].items() if key.startswith(prefix)}
    renamed, unknown = rename_all(state, HEAD_RULES["Encoding"])
    assert unknown == []
    head.load_state_dict(renamed)
    x = fixture["features"][3]
    assert fixture["logits"].std() > 0.1
    logits, side_outputs = head.layers({"res5": x})
    assert side_outputs == {}
    torch.testing.assert_close(logits, fixture["logits"], rtol=1e-6, atol=1e-5)
    # The side output is there in training only; its layers are the same.
    code = head.context._code(head.context.encoding_project(head.context.bottleneck(x)))
    torch.testing.assert_close(head.context.se_predictor(code), fixture["presence"], rtol=1e-6, atol=1e-5)
