"""Pairing of files and what goes into the catalogs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regseg_d2.data.datasets.spec import datasets_root
from regseg_d2.errors import DatasetError
from tests.data.data_helpers import CLASSES, registered, toy_spec, write_toy


def _touch(*paths: Path):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(path)


def test_records_are_sorted_pairs(tmp_path):
    for stem in ("b", "a", "sub/a", "c.d"):
        _touch(tmp_path / "images" / f"{stem}.png", tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "images" / "notes.txt").write_text("passed over")
    (tmp_path / "images" / ".hidden.png").write_text("passed over")
    records = toy_spec(tmp_path).load()
    assert [record["image_id"] for record in records] == ["a", "b", "c.d", "sub/a"]
    for record in records:
        assert Path(record["file_name"]) == tmp_path / "images" / f"{record['image_id']}.png"
        assert Path(record["sem_seg_file_name"]) == tmp_path / "labels" / f"{record['image_id']}.png"
        assert record["dataset_name"] == "toy"


def test_suffixes_in_the_manner_of_cityscapes(tmp_path):
    for stem in ("ulm/ulm_0", "ulm/ulm_1"):
        _touch(
            tmp_path / "images" / f"{stem}_leftImg8bit.PNG",
            tmp_path / "labels" / f"{stem}_gtFine_labelTrainIds.png",
            tmp_path / "labels" / f"{stem}_gtFine_instanceIds.png",
        )
    spec = toy_spec(
        tmp_path, image_suffixes=("_leftImg8bit.png",), label_suffixes=("_gtFine_labelTrainIds.png",)
    )
    records = spec.load()
    assert [record["image_id"] for record in records] == ["ulm/ulm_0", "ulm/ulm_1"]
    assert all(record["sem_seg_file_name"].endswith("labelTrainIds.png") for record in records)


def test_the_longest_suffix_is_cut_off(tmp_path):
    _touch(tmp_path / "images" / "a.png", tmp_path / "labels" / "a_mask.png")
    records = toy_spec(tmp_path, label_suffixes=(".png", "_mask.png")).load()
    assert [record["image_id"] for record in records] == ["a"]


def test_roots_are_resolved_when_loaded(tmp_path, monkeypatch):
    spec = toy_spec(tmp_path, image_root="set/images", label_root="set/labels")
    with registered(spec):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
        with pytest.raises(DatasetError, match="DETECTRON2_DATASETS") as caught:
            DatasetCatalog.get("toy")
        assert str(tmp_path / "nowhere" / "set" / "images") in str(caught.value)
        write_toy(tmp_path / "set", count=2)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        assert len(DatasetCatalog.get("toy")) == 2


def test_default_root(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets_root() == Path.home() / "data"


def test_missing_root_says_what_to_do(tmp_path):
    write_toy(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(DatasetError, match=r"folder of its labels, .*labels, does not exist.*Ask the cook"):
        toy_spec(tmp_path, how_to_get="Ask the cook.").load()


def test_image_without_label_and_label_without_image(tmp_path):
    write_toy(tmp_path, count=9)
    (tmp_path / "labels" / "003.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 9 image files have no label .*003\.png"):
        toy_spec(tmp_path).load()
    for i in range(9):
        (tmp_path / "images" / f"{i:03d}.png").unlink(missing_ok=i != 8)
    _touch(tmp_path / "images" / "000.png", tmp_path / "labels" / "003.png")
    with pytest.raises(DatasetError, match=r"8 of 9 label files have no image .*001\.png.* and 3 more"):
        toy_spec(tmp_path).load()


def test_empty_split(tmp_path):
    write_toy(tmp_path, count=0)
    with pytest.raises(DatasetError, match="is empty: no image file"):
        toy_spec(tmp_path).load()


def test_duplicate_stems(tmp_path):
    write_toy(tmp_path, count=2)
    Image.open(tmp_path / "images" / "001.png").save(tmp_path / "images" / "001.jpg")
    with pytest.raises(DatasetError, match=r'two image files have the stem "001".*001\.jpg and .*001\.png'):
        toy_spec(tmp_path).load()


def test_metadata(tmp_path):
    with registered(toy_spec(tmp_path, label_map={0: 0, 7: 1, 9: 255})):
        metadata = MetadataCatalog.get("toy")
        assert metadata.stuff_classes == list(CLASSES)
        assert metadata.stuff_colors[1] == [90, 60, 30]
        assert metadata.label_map == {0: 0, 7: 1, 9: 255}
        assert metadata.color_table is None
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
        assert metadata.sem_seg_root == str(tmp_path / "labels")


def test_registering_twice(tmp_path):
    with registered(toy_spec(tmp_path)):
        toy_spec(tmp_path).register()
        with pytest.raises(DatasetError, match="registered already"):
            toy_spec(tmp_path, ignore_value=254).register()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"classes": ("a", "a", "b")}, "all different"),
        ({"classes": ()}, "at least one"),
        ({"colors": ((0, 0, 0),)}, "3 classes and 1 colours"),
        ({"ignore_value": 1}, 'index of class "ground"'),
        ({"label_map": {0: 3}}, "value 0 to class 3"),
    ],
)
def test_declarations_that_contradict_themselves(tmp_path, changes, words):
    with pytest.raises(DatasetError, match=words):
        toy_spec(tmp_path, **changes)
