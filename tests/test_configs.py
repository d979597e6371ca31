"""Every config under configs/ loads and builds; the number that was found is asserted."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import regseg_d2.modeling  # noqa: F401  registers networks
from regseg_d2.config_files import load_config
from tests.helpers import small_batch

CONFIGS = Path(__file__).parent.parent / "configs"
LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" not in path.parts)
BASES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" in path.parts)


def test_all_files_were_found():
    assert (len(LEAVES), len(BASES)) == (10, 12)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_builds_and_takes_a_step(path):
    cfg = load_config(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.PRETRAINED = ""
    # Thin where the width is a key; the structure is the config's own.
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    head = cfg.MODEL.SEM_SEG_HEAD
    head.CONTEXT_CHANNELS = head.CONVS_DIM = head.ASPP_CHANNELS = 16
    cfg.INPUT.CROP.SIZE = [64, 64]
    torch.manual_seed(0)
    model = build_model(cfg)
    assert len(model.regularizers) == len(cfg.MODEL.REGULARIZERS.NAMES)
    losses = model(small_batch())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("path", BASES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_base_has_known_keys_and_is_used(path):
    load_config(str(path))
    assert any(f"{path.parent.name}/{path.name}" in leaf.read_text() for leaf in LEAVES)


def test_method_and_baseline_share_their_schedule():
    for car in CONFIGS.glob("c*/*_car.yaml"):
        baseline = car.with_name(car.name.replace("_car.yaml", ".yaml"))
        ours, theirs = load_config(str(car)), load_config(str(baseline))
        assert ours.SOLVER == theirs.SOLVER
        assert ours.INPUT == theirs.INPUT
        assert ours.SEED == theirs.SEED
        assert ours.MODEL.REGULARIZERS.NAMES == ["CAR"]
        assert theirs.MODEL.REGULARIZERS.NAMES == []
