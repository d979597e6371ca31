"""OCR with mmsegmentation's weights: the same logits."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_heads import AUXILIARY_RULES, HEAD_RULES
from regseg_d2.weights.renaming import rename_all
from tests.helpers import small_cfg

FIXTURE = Path(__file__).parent / "fixtures" / "ocr_resnet.pt"


def load_part(state, prefix, rules):
    """The tensors behind a prefix by our names; all of them have to be known."""
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    renamed, unknown = rename_all(part, rules)
    assert unknown == []
    return renamed


@pytest.fixture(scope="module")
def fixture():
    return torch.load(FIXTURE, weights_only=True)


@pytest.fixture(scope="module")
def head(fixture):
    coarse, ocr = fixture["config"]["decode_head"]
    cfg = small_cfg(
        "FCN",
        SEM_SEG_HEAD__NUM_CLASSES=ocr["num_classes"],
        SEM_SEG_HEAD__IN_FEATURES=["res5"],
        SEM_SEG_HEAD__CONTEXT="OCR",
        SEM_SEG_HEAD__CONTEXT_CHANNELS=ocr["channels"],
        SEM_SEG_HEAD__OCR_KEY_CHANNELS=ocr["ocr_channels"],
        SEM_SEG_HEAD__PROJECTION="",
        SEM_SEG_HEAD__AUX__IN_FEATURE="res4",
        SEM_SEG_HEAD__AUX__CHANNELS=coarse["channels"],
    )
    shapes = {
        "res4": ShapeSpec(channels=coarse["in_channels"], stride=8),
        "res5": ShapeSpec(channels=ocr["in_channels"], stride=8),
    }
    head = ContextHead(resolve_auto_norm(cfg), shapes).eval()
    ours = load_part(fixture["state"], "decode_head.1.", HEAD_RULES["OCR"])
    auxiliary = load_part(fixture["state"], "decode_head.0.", AUXILIARY_RULES)
    head.load_state_dict({**ours, **{f"auxiliary.{key}": value for key, value in auxiliary.items()}})
    return head


@torch.no_grad()
def test_logits(fixture, head):
    features = {"res4": fixture["features"][2], "res5": fixture["features"][3]}
    assert fixture["logits"].std() > 0.1
    torch.testing.assert_close(head.auxiliary(features["res4"]), fixture["coarse"], rtol=1e-6, atol=1e-5)
    logits, side_outputs = head.layers(features)
    assert side_outputs == {}
    torch.testing.assert_close(logits, fixture["logits"], rtol=1e-6, atol=1e-5)


@torch.no_grad()
def test_the_fixture_tells_other_regions(fixture, head):
    """The logits depend on the coarse ones, far beyond the tolerance."""
    features = {"res4": fixture["features"][2].flip(3), "res5": fixture["features"][3]}
    assert (head.layers(features)[0] - fixture["logits"]).abs().max() > 1e-2
