"""Every config under configs/ loads, builds and takes a step; how many were found is asserted."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import regseg_d2.modeling  # noqa: F401  registers networks
from regseg_d2.config_files import flatten_config, load_config
from regseg_d2.regularizers.places import split_name
from tests.helpers import small_batch

CONFIGS = Path(__file__).parent.parent / "configs"
LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" not in path.parts)
BASES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" in path.parts)
ABLATIONS = [path for path in LEAVES if "ablations" in path.parts]
# Folders whose methods are compared with the baseline beside them.
COMPARED = ("camvid", "camvid_half", "cooccurrence")

NUM_LEAVES = {
    "ablations/car": 20,
    "ablations/contrast_seg": 9,
    "ablations/mdrl": 23,
    "ablations/pne": 26,
    "ablations/rch": 7,
    "ablations/region_contrast": 9,
    "camvid": 8,
    "camvid_half": 8,
    "cooccurrence": 2,
    "quick": 6,
}
NUM_BASES = {
    "_base_/datasets": 4,
    "_base_/models": 10,
    "_base_/regularizers": 7,
    "_base_/schedules": 10,
}


def shown(path):
    return str(path.relative_to(CONFIGS))


def count_by_folder(paths):
    return dict(Counter(shown(path.parent) for path in paths))


def make_thin(cfg):
    """Makes a config's network small where its width is a key; the structure stays the config's own."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.PRETRAINED = cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.INPUT.CROP.SIZE = [64, 64]
    _make_section_thin(cfg.MODEL.SEM_SEG_HEAD)
    _make_section_thin(cfg.MODEL.REGULARIZERS)
    return cfg


def _make_section_thin(section):
    largest = {"CHANNELS": 16, "CONVS_DIM": 16, "BANK_SIZE": 8, "MEMORY_SIZE": 8}
    for key, value in section.items():
        if isinstance(value, CfgNode):
            _make_section_thin(value)
        for ending, limit in largest.items():
            if key.endswith(ending) and type(value) is int:
                section[key] = min(value, limit)


def test_all_files_were_found():
    assert count_by_folder(LEAVES) == NUM_LEAVES
    assert count_by_folder(BASES) == NUM_BASES


@pytest.mark.parametrize("path", LEAVES, ids=shown)
def test_config_builds_and_takes_a_step(path):
    cfg = make_thin(load_config(str(path)))
    torch.manual_seed(0)
    model = build_model(cfg)
    assert sorted(model.regularizers) == sorted(cfg.MODEL.REGULARIZERS.NAMES)
    losses = model(small_batch())
    own = {key for regularizer in model.regularizers.values() for key in regularizer.loss_keys}
    assert own <= set(losses)
    assert bool(own) == bool(cfg.MODEL.REGULARIZERS.NAMES)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("path", LEAVES, ids=shown)
def test_output_goes_to_a_folder_of_its_own(path):
    assert f"output/{shown(path).removesuffix('.yaml')}" == load_config(str(path)).OUTPUT_DIR


@pytest.mark.parametrize("path", ABLATIONS, ids=shown)
def test_an_ablation_says_which_row_it_is(path):
    assert re.match(r"# .*\b(Tables?|Section) [\d.]+", path.read_text().splitlines()[0])


@pytest.mark.parametrize("path", BASES, ids=shown)
def test_base_has_known_keys_and_is_used(path):
    load_config(str(path))
    assert any(f"{path.parent.name}/{path.name}" in leaf.read_text() for leaf in LEAVES)


def compared_pairs():
    """Each config of a comparison with another beside it whose name its own begins with: its baseline."""
    compared = [path for path in LEAVES if path.parent.name in COMPARED]
    return [
        (path, baseline)
        for path in compared
        for baseline in compared
        if path.parent == baseline.parent
        and path.stem.startswith(f"{baseline.stem}_")
        # "x_car_pne" begins with "x_car" too; its baseline is "x".
        and not any(baseline.stem.startswith(f"{other.stem}_") for other in compared)
    ]


@pytest.mark.parametrize(("path", "baseline"), compared_pairs(), ids=shown)
def test_method_and_baseline_share_their_schedule(path, baseline):
    ours, theirs = (load_config(str(each)) for each in (path, baseline))
    assert theirs.MODEL.REGULARIZERS.NAMES == []
    # The regularizers are those that the file's name says: "car_pne", "region_contrast".
    said = path.stem.removeprefix(f"{baseline.stem}_").replace("_", "")
    for name in ours.MODEL.REGULARIZERS.NAMES:
        assert split_name(name)[0].lower() in said
        said = said.replace(split_name(name)[0].lower(), "")
    assert said == ""
    ours, theirs = flatten_config(ours), flatten_config(theirs)
    different = {key for key in ours if theirs.get(key) != ours[key]}
    allowed = re.compile(
        r"OUTPUT_DIR|MODEL\.REGULARIZERS\..*|MODEL\.SEM_SEG_HEAD\.(PROJECTION\w*|AUGMENT|MDRL\..*)"
    )
    assert {key for key in different if not allowed.fullmatch(key)} == set()
    assert {"OUTPUT_DIR", "MODEL.REGULARIZERS.NAMES"} <= different


def test_every_method_is_compared_on_camvid():
    from regseg_d2.regularizers import REGULARIZER

    compared = {
        split_name(name)[0]
        for path in LEAVES
        if path.parent.name == "camvid"
        for name in load_config(str(path)).MODEL.REGULARIZERS.NAMES
    }
    assert compared == {name for name, _ in REGULARIZER}
