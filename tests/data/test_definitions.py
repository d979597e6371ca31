"""The definition files of all benchmark data sets, against each other and against what is published."""

import re

import numpy as np
import pytest
import yaml
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import builtin_meta

import regseg_d2.data  # noqa: F401  registers the data sets
from regseg_d2.common.yaml_files import read_own_yaml, read_yaml
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets import definitions
from regseg_d2.data.datasets.definitions import definition_names, load_definition
from tests.setup.setup_helpers import ROOT

NAMES = definition_names()
NUM_CLASSES = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 19,
    "coco_stuff_10k": 171,
    "coco_stuff_164k": 171,
    "pascal_context_59": 59,
    "pascal_context_60": 60,
    "voc": 21,
}
# Colours that two classes share in the published palette.
SHARED_COLORS = {"ade20k": {(140, 140, 140)}}


def test_every_data_set_has_a_definition():
    assert set(NUM_CLASSES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_reader_reads_what_the_strict_one_does(name):
    path = definitions.FOLDER / f"{name}.yaml"
    assert read_own_yaml(path) == read_yaml(path)


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_definition(name):
    definition = load_definition(name)
    classes, colors = definition.classes, definition.colors
    assert len(classes) == len(colors) == NUM_CLASSES[name]
    assert all(isinstance(c, str) and c == c.strip() and c for c in classes)
    assert len(set(classes)) == len(classes)
    assert all(len(color) == 3 and all(0 <= part <= 255 for part in color) for color in colors)
    assert {color for color in colors if colors.count(color) > 1} == SHARED_COLORS.get(name, set())
    assert definition.ignore_value == 255
    assert definition.counts and all(count > 0 for count in definition.counts.values())
    assert re.search(r"https?://", definition.source)
    for checksum in definition.checksums.values():
        algorithm, digest = checksum.split(":")
        assert (
            re.fullmatch(r"[0-9a-f]+", digest)
            and len(digest) == {"md5": 32, "sha1": 40, "sha256": 64}[algorithm]
        )


@pytest.mark.parametrize("name", NAMES)
def test_label_maps_reach_every_class(name):
    definition = load_definition(name)
    if definition.label_map is not None:
        assert set(definition.label_map.values()) - {255} == set(range(len(definition.classes)))
        assert list(definition.label_map) == sorted(definition.label_map)
        assert all(0 <= value <= 255 for value in definition.label_map)


def test_facts_that_others_publish_too():
    """Names as Detectron2 has them, and the rules by which palettes and maps were made."""
    cityscapes = load_definition("cityscapes")
    assert list(cityscapes.classes) == builtin_meta._get_builtin_metadata("cityscapes")["stuff_classes"]
    # Ids 0 to 33 are all there are; -1, the license plate, is 255 in 8 bits.
    assert list(cityscapes.label_map) == [*range(34), 255]
    assert [cityscapes.label_map[value] for value in (-1 % 256, 7, 26, 33, 9)] == [255, 0, 13, 18, 255]

    ade20k = load_definition("ade20k")
    assert ade20k.label_map == {0: 255, **{value: value - 1 for value in range(1, 151)}}
    theirs = [name.split(",")[0].strip() for name in builtin_meta.ADE20K_SEM_SEG_CATEGORIES]
    different = {ours: other for ours, other in zip(ade20k.classes, theirs, strict=True) if ours != other}
    # Detectron2 takes another synonym of a few classes.
    assert len(different) < 12 and different["windowpane"] == "window"

    voc = load_definition("voc")
    assert voc.label_map is None and voc.classes[0] == "background"
    assert voc.classes[1:] == tuple(sorted(voc.classes[1:]))
    bits = np.unpackbits(np.array(voc.colors, np.uint8)[:, :, None], axis=2)  # highest bit first
    indices = sum(
        bits[:, channel, bit].astype(int) << (channel + 3 * bit) for channel in range(3) for bit in range(8)
    )
    assert indices.tolist() == list(range(21))
    assert voc.counts["train"] + voc.counts["val"] == voc.counts["trainval"]
    assert voc.counts["sbd_train"] + voc.counts["sbd_val"] == 11355


def test_definitions_against_each_other():
    """The same classes where data sets share them."""
    voc, context = load_definition("voc"), load_definition("pascal_context_59")
    with_background = load_definition("pascal_context_60")
    assert with_background.classes == ("background", *context.classes)
    assert with_background.colors[1:] == context.colors
    # Pascal Context shortens one name of VOC's.
    assert {"diningtable"} == set(voc.classes[1:]) - set(context.classes) and "table" in context.classes
    coco_10k, coco_164k = load_definition("coco_stuff_10k"), load_definition("coco_stuff_164k")
    assert set(coco_10k.classes) == set(coco_164k.classes)


@pytest.mark.parametrize(
    "dataset, name",
    [
        ("ade20k_sem_seg_val", "ade20k"),
        ("camvid_test", "camvid"),
        ("cityscapes_coarse_sem_seg_train_extra", "cityscapes"),
        ("cityscapes_fine_sem_seg_train", "cityscapes"),
        ("voc_2012_sem_seg_train_aug", "voc"),
    ],
)
def test_registered_metadata_is_the_definitions(dataset, name):
    metadata, definition = MetadataCatalog.get(dataset), load_definition(name)
    assert metadata.stuff_classes == list(definition.classes)
    assert metadata.stuff_colors == [list(color) for color in definition.colors]
    assert metadata.label_map == definition.label_map
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/_base_/datasets").glob("*.yaml")), ids=lambda p: p.stem
)
def test_data_sets_of_the_configs_are_built_in(path):
    cfg = load_config(str(path))
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, name
        assert metadata.ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE


def test_definitions_are_installed_with_the_package():
    assert '"regseg_d2.data.datasets": ["definitions/*.yaml"]' in (ROOT / "setup.py").read_text()
    assert {path.suffix for path in definitions.FOLDER.iterdir()} == {".yaml"}


GOOD = {
    "how_to_get": "draw it",
    "layout": {
        "name": "toy_{split}",
        "images": "i/{split}",
        "labels": "l/{part}",
        "label_suffix": "_{part}.png",
    },
    "splits": {"train": {"part": 1}},
    "name": "toy",
    "source": "https://a.b",
    "counts": {"train": 1},
    "ignored_values": [0],
    "classes": [
        {"name": "a", "color": [1, 2, 3], "values": [1]},
        {"name": "b", "color": [2, 2, 3], "values": [2]},
    ],
}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"clases": []}, "unknown keys"),
        ({"name": "other"}, "another name"),
        ({"ignored_values": [1]}, "named twice"),
        ({"classes": [GOOD["classes"][0], {"name": "b", "color": [2, 2, 3]}]}, "all classes have values"),
    ],
)
def test_a_definition_with_a_mistake_is_refused(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(definitions, "FOLDER", tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(GOOD))
    definition = definitions.load_definition.__wrapped__("toy")
    assert definition.label_map == {0: 255, 1: 0, 2: 1}
    (spec,) = definition.specs.values()
    assert (spec.name, spec.image_root, spec.label_root) == ("toy_train", "i/train", "l/1")
    assert spec.label_suffixes == ("_1.png",) and spec.how_to_get == "draw it"
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    with pytest.raises(ValueError, match=words):
        definitions.load_definition.__wrapped__("toy")
