"""Data sets declared in YAML: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets.declared import read_declaration, register_declared
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.records import load_training_records
from regseg_d2.drawing.colors import filled_colors, voc_color
from tests.data.data_helpers import write_toy
from tests.data.declarations import FARM, declare, declared


def test_splits_by_folder(tmp_path):
    write_toy(tmp_path / "data", count=3)
    with declared(declare(tmp_path)) as names:
        assert names == ["farm_train", "farm_val"]
        records = DatasetCatalog.get("farm_train")
        assert [record["image_id"] for record in records] == ["000", "001", "002"]
        assert records[0]["file_name"] == str(tmp_path / "data" / "images" / "000.png")
        metadata = MetadataCatalog.get("farm_val")
        assert metadata.stuff_classes == ["soil", "crop", "weed"]
        # VOC's colours of the indices 1 and 2, as pictures show data sets without any.
        assert metadata.stuff_colors == [[128, 0, 0], [0, 128, 0], [200, 60, 160]]
        assert metadata.ignore_label == 255
        label = label_reader_for("farm_train")(records[1]["sem_seg_file_name"])
        np.testing.assert_array_equal(label, np.array(Image.open(tmp_path / "data" / "labels" / "001.png")))


def test_colors_that_are_free():
    assert voc_color(15) == (192, 128, 128)
    assert filled_colors([None, (0, 128, 0), None]) == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert len(set(filled_colors([None] * 300))) == 300


def test_splits_by_list(tmp_path):
    write_toy(tmp_path / "data", count=4)
    (tmp_path / "data" / "train.txt").write_text("002\n000\n")
    (tmp_path / "data" / "val.txt").write_text("images/001.png labels/003.png\n")
    splits = {"train": {"list": "train.txt"}, "val": {"list": "val.txt"}}
    train, val = read_declaration(declare(tmp_path, images="images", labels="labels", splits=splits))
    assert [record["image_id"] for record in train.load()] == ["002", "000"]
    assert train.load()[0]["sem_seg_file_name"] == str(tmp_path / "data" / "labels" / "002.png")
    (record,) = val.load()
    assert (record["image_id"], Path(record["sem_seg_file_name"]).name) == ("images/001", "003.png")


def test_splits_by_fraction(tmp_path):
    write_toy(tmp_path / "data", count=30, size=(2, 2))

    def load(**changes):
        specs = read_declaration(declare(tmp_path, images="images", labels="labels", **changes))
        return [{record["image_id"] for record in spec.load()} for spec in specs]

    splits = {"train": 0.7, "val": {"fraction": 0.2}, "test": 0.1}
    parts = load(splits=splits)
    assert sorted(stem for part in parts for stem in part) == [f"{i:03d}" for i in range(30)]
    assert [len(part) for part in parts] == [23, 5, 2]  # about 21, 6, 3
    assert load(splits=splits, seed=0) == parts != load(splits=splits, seed=1)
    assert load(splits={"train": 0.7, "val": 0.1})[0] == parts[0]


def test_label_map_and_suffixes(tmp_path):
    for folder, name, value in (("a", "1_image.tif", 9), ("a", "1_mask.png", 7)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 3), value, dtype=np.uint8)).save(tmp_path / folder / name)
    path = declare(
        tmp_path,
        root=str(tmp_path),
        label_map={0: "ignore", 7: "weed", 8: 0, 9: 200},
        ignore_value=200,
        image_suffixes=["_image.TIF"],
        label_suffixes=["_mask.png"],
        splits={"train": {"images": "a", "labels": "a"}},
    )
    with declared(path):
        (record,) = DatasetCatalog.get("farm_train")
        assert record["image_id"] == "1"
        reader = label_reader_for("farm_train")
        assert reader.label_map == {0: 200, 7: 2, 8: 0, 9: 200}
        assert (reader(record["sem_seg_file_name"]) == 2).all()


def test_color_table(tmp_path):
    colors = {"soil": [120, 80, 40], "crop": [60, 160, 60], "weed": [200, 60, 160]}
    classes = [{"name": name, "color": color} for name, color in colors.items()]
    (spec,) = read_declaration(
        declare(
            tmp_path,
            classes=classes,
            color_table="classes",
            splits={"train": {"images": "i", "labels": "l"}},
        )
    )
    assert spec.color_table == {(120, 80, 40): 0, (60, 160, 60): 1, (200, 60, 160): 2}
    table = {"soil": [[1, 2, 3], [4, 5, 6]], "weed": [7, 8, 9], "ignore": [0, 0, 0]}
    spec, _ = read_declaration(declare(tmp_path, color_table=table))
    assert spec.color_table == {(1, 2, 3): 0, (4, 5, 6): 0, (7, 8, 9): 2, (0, 0, 0): 255}


def test_root(tmp_path, monkeypatch):
    monkeypatch.setenv("FARMS", str(tmp_path / "else"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for root, folder in (
        (None, tmp_path),
        ("../x", tmp_path.parent / "x"),
        ("$FARMS/x", tmp_path / "else" / "x"),
        ("~/x", tmp_path / "home" / "x"),
        ("/x", Path("/x")),
    ):
        assert read_declaration(declare(tmp_path, root=root))[0].base() == folder


def test_missing_files_name_the_declaration(tmp_path):
    path = declare(tmp_path)
    with pytest.raises(DatasetError, match=f"folder of its images.*does not exist. It is declared in {path}"):
        read_declaration(path)[0].load()


def test_registering_again(tmp_path, monkeypatch):
    path = declare(tmp_path)
    monkeypatch.chdir(tmp_path)
    with declared(path):
        assert register_declared(["farm.yaml"]) == ["farm_train", "farm_val"]
        declare(tmp_path, classes=["soil", "crop"])
        with pytest.raises(DatasetError, match=r'farm\.yaml: .*"farm_train" is registered already'):
            register_declared([path])
        assert len(MetadataCatalog.get("farm_train").stuff_classes) == 3


def test_joined_data_sets_may_have_other_label_maps(tmp_path):
    write_toy(tmp_path / "data", count=2)
    write_toy(tmp_path / "two" / "data", count=3)
    map_of_two = {0: 1, 1: 0, 2: 2, 255: "ignore"}
    with declared(declare(tmp_path), declare(tmp_path / "two", name="two", label_map=map_of_two)):
        assert len(load_training_records(["farm_train", "two_train"])) == 5


# --------------------------------------------------------------------------------------- what is refused

BROKEN = {
    "unknown key": ({"label_maps": {}}, r"unknown key 'label_maps' \(did you mean 'label_map'"),
    "no name": ({"name": None}, "the key 'name' is missing"),
    "no classes": ({"classes": None}, "the key 'classes' is missing"),
    "no splits": ({"splits": None}, "the key 'splits' is missing"),
    "name with a slash": ({"name": "a/b"}, r"'name' is 'a/b' \(str\); expected a name of letters"),
    "name is a number": ({"name": 2024}, r"'name' is 2024 \(int\); .*Put it in quotes"),
    "empty classes": ({"classes": []}, r"'classes' is \[\] \(list\); expected a list of names"),
    "classes as a mapping": ({"classes": {"soil": 0}}, r"'classes' is \{'soil': 0\} \(dict\)"),
    "class that YAML reads as no": (
        {"classes": ["soil", False]},
        r"'classes\[1\]' is False \(bool\); .*Put it in quotes",
    ),
    "class twice": ({"classes": ["soil", "crop", "soil"]}, r"'classes\[2\]' is 'soil' .*that of class 0"),
    "class named ignore": ({"classes": ["ignore", "crop"]}, "ignore_value is theirs"),
    "class with control characters": ({"classes": ["a\tb"]}, r"'classes\[0\]' is 'a\\tb'"),
    "key of a class": (
        {"classes": [{"name": "a", "colour": 1}]},
        r"unknown key 'classes\[0\]\.colour' .*'color'",
    ),
    "class without a name": ({"classes": [{"color": [1, 2, 3]}]}, r"'classes\[0\]\.name' is None"),
    "short color": ({"classes": [{"name": "a", "color": [1, 2]}]}, r"classes\[0\]\.color' is \[1, 2\]"),
    "large color": ({"classes": [{"name": "a", "color": [1, 2, 256]}]}, "from 0 to 255"),
    "color as a text": (
        {"classes": [{"name": "a", "color": "red"}]},
        r"'red' \(str\); expected \[red, green",
    ),
    "ignore_value is a class": (
        {"ignore_value": 2},
        "'ignore_value' is 2 .*none of the class indices 0 to 2",
    ),
    "ignore_value as a text": ({"ignore_value": "255"}, "expected a whole number from 0 to 65535"),
    "bool for a number": ({"ignore_value": True}, r"'ignore_value' is True \(bool\)"),
    "empty label_map": ({"label_map": {}}, "'label_map' is {} .*expected {file value: class}"),
    "text in label_map": ({"label_map": {"0": 1}}, r"'label_map' is '0' \(str\); expected whole numbers"),
    "unknown class": ({"label_map": {1: "sol"}}, r"'label_map.1' is 'sol' .*did you mean 'soil'"),
    "class too large": ({"label_map": {1: 3}}, r"'label_map.1' is 3 .*index from 0 to 2, or ignore"),
    "label_map twice": ({"label_map": {1: 1}, "color_table": {"soil": [0, 0, 0]}}, "remove one"),
    "color_table without colors": (
        {"color_table": "classes"},
        r"'classes\[0\]' is 'soil' .*color_table: classes",
    ),
    "color of two classes": (
        {"color_table": {"soil": [1, 2, 3], "crop": [1, 2, 3]}},
        r"\"color_table\.'crop'\" is|color_table\.'crop'' is \[1, 2, 3\] .*no other class",
    ),
    "color_table by index": ({"color_table": {7: [1, 2, 3]}}, r"color_table\.7' is 7 .*index from 0 to 2"),
    "suffix as a text": ({"image_suffixes": ".jpg"}, r"'image_suffixes' is '.jpg' \(str\); expected a list"),
    "suffix without a dot": ({"label_suffixes": ["png"]}, r"'label_suffixes\[0\]' is 'png' .*with its dot"),
    "empty root": ({"root": ""}, "'root' is '' "),
    "root with an unknown variable": ({"root": "$NO_SUCH/x"}, r"'root' is '\$NO_SUCH/x' .*are set"),
    "no split": ({"splits": {}}, "'splits' is {}"),
    "split by a text": ({"splits": {"train": "train"}}, r"'splits.train' is 'train' .*or a fraction"),
    "split with an unknown key": (
        {"splits": {"train": {"image": "x"}}},
        r"'splits\.train\.image' .*'images'",
    ),
    "split without labels": ({"splits": {"train": {"images": "x"}}}, r"'splits.train' is {'images': 'x'}"),
    "two sources": ({"splits": {"train": {"list": "x", "fraction": 0.2}}}, "'splits.train' is"),
    "fraction without folders": ({"splits": {"train": 0.5}}, "the key 'images' is missing: the folder"),
    "fraction of 0": ({"images": "i", "labels": "l", "splits": {"a": 0}}, "'splits.a' is 0 .*above 0"),
    "not a number": ({"images": "i", "labels": "l", "splits": {"a": float("nan")}}, "'splits.a' is nan"),
    "bool for a fraction": ({"images": "i", "labels": "l", "splits": {"a": True}}, "'splits.a' is True"),
    "more than all": (
        {"images": "i", "labels": "l", "splits": {"a": 0.8, "b": {"fraction": 0.3}}},
        "'splits.b' is 0.3 .*at most 0.2, which",
    ),
    "negative seed": ({"images": "i", "labels": "l", "seed": -1, "splits": {"a": 1}}, "'seed' is -1 "),
    "folder that no split uses": ({"images": 3, "labels": "l"}, "'images' is 3 "),
    "one folder for lists": ({"images": "i", "splits": {"a": {"list": "x"}}}, "the key 'labels' is missing"),
    "split is a number": ({"splits": {1: {"list": "x"}}}, r"'splits' is 1 \(int\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_file_key_value_and_cure(tmp_path, case):
    changes, words = BROKEN[case]
    with pytest.raises(ConfigError, match=rf"(?s)farm\.yaml: .*{words}|farm\.yaml: {words}"):
        read_declaration(declare(tmp_path, **changes))


TEXTS = {
    "key twice": ("name: farm\nname: barn\n", r"'name' is written twice \(line 2"),
    "value twice in label_map": (f"{FARM}label_map: {{1: soil, 0x1: crop}}\n", "the key 1 is written twice"),
    "python": ("name: !!python/object/apply:os.getcwd []\n", "python/object/apply"),
    "no yaml": ("name: [1\n", "not valid YAML"),
    "list": ("- name\n", "found a list"),
    "two documents": ("name: a\n---\nname: b\n", "not valid YAML"),
    "date": ("name: 2001-99-99\n", "contradicts its form"),
    "tag": ("name: !!bool maybe\n", "contradicts its form"),
    "deep": ("name: " + "[" * 600 + "]" * 600, "nested too deep"),
    "holds itself": ("name: &a [*a]\n", "holds itself"),
    "bomb": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg")
        ),
        "more than 1000000 values",
    ),
    "endless number": (f"{FARM}seed: 0x{'f' * 5000}\n", r"a number of 5002 digits \(line 8, column 7"),
    "endless key": (f"{FARM}? 0x{'f' * 5000}\n: 1\n", r"a number of 5002 digits \(line 8, column 3"),
    "large number": (f"{FARM}seed: {2**64}\n", r"a number of more than 64 bits \(line 8"),
    "half a character": (FARM.replace("soil", r'"\ud800"'), r"'\\ud800' is no text.*line 4, column 11"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_cannot_be_used(tmp_path, case):
    text, words = TEXTS[case]
    (tmp_path / "farm.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)farm\.yaml: .*{words}") as caught:
        read_declaration(tmp_path / "farm.yaml")
    assert len(str(caught.value)) < 1500


def test_missing_declaration(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml, .* does not exist.*DATASETS\.DECLARED"):
        register_declared([tmp_path / "nowhere.yaml"])
    cfg = load_config("", ["DATASETS.DECLARED", "[3]"])
    with pytest.raises(ConfigError, match=r"DATASETS\.DECLARED has the entry 3; expected names"):
        register_declared(cfg.DATASETS.DECLARED)
