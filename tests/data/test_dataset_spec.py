"""Pairing of files and what goes into the catalogs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.spec import datasets_root
from regseg_d2.data.datasets.splits import Part
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


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    write_toy(tmp_path / "real", count=2)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "link").symlink_to(tmp_path / "real" / kind)
        (tmp_path / kind / "loop").symlink_to(tmp_path / kind)
    assert [record["image_id"] for record in toy_spec(tmp_path).load()] == ["link/000", "link/001"]


def test_images_and_labels_in_one_folder(tmp_path):
    _touch(*(tmp_path / f"{stem}{end}" for stem in "ab" for end in (".png", "_mask.png")))
    roots = {"image_root": str(tmp_path), "label_root": str(tmp_path)}
    spec = toy_spec(tmp_path, **roots, image_suffixes=(".png",), label_suffixes=("_mask.png",))
    assert [(r["image_id"], Path(r["sem_seg_file_name"]).name) for r in spec.load()] == [
        ("a", "a_mask.png"),
        ("b", "b_mask.png"),
    ]
    with pytest.raises(DatasetError, match=r"a\.png is an image and its own label"):
        toy_spec(tmp_path, **roots).load()


# ---------------------------------------------------------------------------------------------- lists


def _listed(root: Path, text: str, **changes):
    (root / "list.txt").write_text(text, encoding="utf-8")
    return toy_spec(root, list_file=str(root / "list.txt"), **changes)


def test_list_of_stems_in_the_manner_of_voc(tmp_path, monkeypatch):
    root = tmp_path / "VOC2012"
    for stem in ("2007_000033", "2007_000032", "2007_000039"):
        _touch(root / "JPEGImages" / f"{stem}.jpg")
    _touch(root / "JPEGImages" / "2007_000039.png")  # not in the list, hence no ambiguity
    for stem in ("2007_000033", "2007_000032"):
        _touch(root / "SegmentationClass" / f"{stem}.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000032\n\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    spec = toy_spec(
        tmp_path,
        image_root="VOC2012/JPEGImages",
        label_root="VOC2012/SegmentationClass",
        list_file="VOC2012/ImageSets/Segmentation/val.txt",
    )
    records = spec.load()
    assert [record["image_id"] for record in records] == ["2007_000033", "2007_000032"]
    assert records[0]["file_name"] == str(root / "JPEGImages" / "2007_000033.jpg")
    assert records[0]["sem_seg_file_name"] == str(root / "SegmentationClass" / "2007_000033.png")


def test_list_of_file_names(tmp_path):
    write_toy(tmp_path, count=3)
    spec = _listed(tmp_path, "./002.png\r\n001\r\n")
    assert [record["image_id"] for record in spec.load()] == ["002", "001"]


@pytest.mark.parametrize(
    "text",
    [
        "a/1.png b/1.png\na/2.png  b/2.png\n",
        "a/1.png\tb/1.png\na/2.png\tb/2.png",
        '\ufeff"a/1.png" b/1.png\n',
    ],
)
def test_list_of_paths(tmp_path, text):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        _touch(tmp_path / f"{name}.png")
    spec = _listed(tmp_path, text, base=lambda: tmp_path)
    records = spec.load()
    assert records[0]["image_id"] == "a/1"
    assert records[0]["file_name"] == str(tmp_path / "a" / "1.png")
    assert records[0]["sem_seg_file_name"] == str(tmp_path / "b" / "1.png")
    assert len(records) == len(text.split("\n")) - text.endswith("\n")


def test_list_of_names_with_spaces(tmp_path):
    _touch(tmp_path / "my photo.png", tmp_path / "my mask.png")
    for text in ('"my photo.png" "my mask.png"', "my photo.png\tmy mask.png"):
        (record,) = _listed(tmp_path, text, base=lambda: tmp_path).load()
        assert (record["image_id"], Path(record["sem_seg_file_name"]).name) == ("my photo", "my mask.png")


def test_stems_of_listed_paths_lead_nowhere_up(tmp_path):
    """Predictions are saved under the stem."""
    _touch(tmp_path / "out" / "1.png", tmp_path / "set" / "1.png", tmp_path / "set" / "2.png")
    text = f"../out/1.png 2.png\n{tmp_path}/set/1.png 2.png\n/{tmp_path}/out/1.png 2.png"
    stems = [r["image_id"] for r in _listed(tmp_path, text, base=lambda: tmp_path / "set").load()]
    assert stems == ["out/1", "1", f"{tmp_path}/out/1"[1:]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty; expected a stem"),
        ("001\n002 003\n", r"line 2: 2 column\(s\), but line 1 has 1"),
        ("001\n\n1 2 3\n", r"line 3: 3 columns \('1 2 3'\)"),
        ("001\n002\n001\n", 'line 3: "001" stands in line 1 already'),
        ("001\n001.png\n", 'names "001" twice'),
        ("001\n\n009\n", r'1 of 2 names in .*list\.txt have no image file .*below .*images: line 3 "009"'),
        ("images/001.png labels/009.png", r"line 1 names the label .*009\.png, which does not exist"),
        ("images/000.png labels/001.png\nimages/000.jpg labels/001.png", 'same stem "images/000"'),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, words):
    write_toy(tmp_path, count=3)
    _touch(tmp_path / "images" / "000.jpg")
    with pytest.raises(DatasetError, match=words):
        _listed(tmp_path, text, base=lambda: tmp_path).load()


def test_list_that_is_missing_or_no_text(tmp_path):
    write_toy(tmp_path, count=1)
    with pytest.raises(DatasetError, match=r"its list .*none\.txt does not exist.*Ask the cook"):
        toy_spec(tmp_path, list_file=str(tmp_path / "none.txt"), how_to_get="Ask the cook.").load()
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DatasetError, match=r"list\.txt cannot be read: .*UTF-8"):
        toy_spec(tmp_path, list_file=str(tmp_path / "list.txt")).load()


# ---------------------------------------------------------------------------------------------- parts


def test_parts_share_the_files_and_none_moves_when_others_come(tmp_path):
    _touch(*(tmp_path / kind / f"{i}.png" for i in range(400) for kind in ("images", "labels")))
    ends = {"train": (0, 0.7), "val": (0.7, 0.9), "test": (0.9, 1)}

    def stems(seed=0):
        parts = {name: toy_spec(tmp_path, part=Part(*end, seed)) for name, end in ends.items()}
        return {name: {record["image_id"] for record in spec.load()} for name, spec in parts.items()}

    before = stems()
    assert sorted(stem for part in before.values() for stem in part) == sorted(map(str, range(400)))
    # Binomial sizes, within 4 standard deviations.
    for name, (start, stop) in ends.items():
        share = stop - start
        assert abs(len(before[name]) - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    assert stems(seed=1) != before
    _touch(*(tmp_path / kind / f"new{i}.png" for i in range(50) for kind in ("images", "labels")))
    after = stems()
    assert all(before[name] <= after[name] for name in ends)


def test_empty_part(tmp_path):
    write_toy(tmp_path, count=2)
    with pytest.raises(DatasetError, match=r"none of 2 images falls into its part of 0\.001.*another seed"):
        toy_spec(tmp_path, part=Part(0, 0.001)).load()
    with pytest.raises(DatasetError, match="expected 0 <= start < stop <= 1"):
        Part(0.5, 0.5)
