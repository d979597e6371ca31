"""Broken data sets and configs: each gives its own readable error before any training."""

import re
import shutil

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.checks import check_datasets, few_images
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy


def _save(array, path):
    Image.fromarray(np.asarray(array)).save(path)


def _label(root, i=2):
    return root / "labels" / f"{i:03d}.png"


def _missing_root(root):
    shutil.rmtree(root / "images")


def _empty(root):
    for path in [*root.glob("images/*"), *root.glob("labels/*")]:
        path.unlink()


def _lonely_image(root):
    _label(root).unlink()


def _lonely_label(root):
    (root / "images" / "002.png").unlink()


def _other_size(root):
    _save(np.zeros((20, 29), dtype=np.uint8), _label(root))


def _value_outside(root):
    _save(np.full((20, 30), 17, dtype=np.uint8), _label(root))


def _rgb_label(root):
    _save(np.zeros((20, 30, 3), dtype=np.uint8), _label(root))


def _cut_off_image(root):
    path = root / "images" / "002.png"
    path.write_bytes(path.read_bytes()[:200])


def _cut_off_label(root):
    _label(root).write_bytes(_label(root).read_bytes()[:50])


def _binary_masks(root):
    rng = np.random.default_rng(0)
    for path in root.glob("labels/*"):
        _save(rng.choice([0, 255], (20, 30)).astype(np.uint8), path)


def _all_ignored(root):
    for path in root.glob("labels/*"):
        _save(np.full((20, 30), 255, dtype=np.uint8), path)


def _lossy_labels(root):
    _label(root).unlink()
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(_label(root), format="JPEG")


BROKEN = {
    _missing_root: r"folder of its images, .*images, does not exist",
    _empty: r"is empty: no image file that ends in \.jpg, \.jpeg, \.png",
    _lonely_image: r"1 of 6 image files have no label of the same stem .*002\.png",
    _lonely_label: r"1 of 6 label files have no image of the same stem .*002\.png",
    _other_size: r"002\.png has 20 x 30 pixels .* but its label .*002\.png has 20 x 29",
    _value_outside: r"002\.png holds values that mean nothing: 17 \(600 pixels\); expected 0 to 2 and 255",
    _rgb_label: r"label file .*002\.png is a colour image \(mode RGB\).*color_table",
    _cut_off_image: r"image file .*002\.png cannot be read",
    _cut_off_label: r"label file .*002\.png cannot be read",
    _all_ignored: r"All pixels of the first 6 labels .* have the ignore value 255",
    _lossy_labels: r"label file .*002\.png is a JPEG",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__[1:])
@pytest.mark.parametrize("place", ["train", "test"])
def test_each_broken_data_set_has_its_own_error(tmp_path, broken, place):
    write_toy(tmp_path / "good")
    write_toy(tmp_path / "bad")
    broken(tmp_path / "bad")
    names = {"train": ("good",), "test": ("good",), place: ("good", "bad")}
    with registered(toy_spec(tmp_path / "good", "good"), toy_spec(tmp_path / "bad", "bad")):
        with pytest.raises(DatasetError) as caught:
            check_datasets(toy_cfg(**names))
        message = str(caught.value).replace("\n", " ")
        matching = [other for other, pattern in BROKEN.items() if re.search(pattern, message)]
        assert matching == [broken], message
        check_datasets(toy_cfg(train=("good",), test=("good",)))


def test_binary_masks(tmp_path):
    write_toy(tmp_path)
    _binary_masks(tmp_path)
    two = {"classes": ("no", "yes"), "colors": ((0, 0, 0), (255, 255, 255))}
    cfg = toy_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    with registered(toy_spec(tmp_path, **two)), pytest.raises(DatasetError) as caught:
        check_datasets(cfg)
    assert "label_map={0: 0, 255: 1}" in str(caught.value)
    # Both cures of the message work.
    for label_map in ({0: 0, 255: 1}, {0: 0, 1: 1, 255: 255}):
        with registered(toy_spec(tmp_path, **two, label_map=label_map)):
            check_datasets(cfg)


def test_only_the_first_samples_are_read(tmp_path):
    write_toy(tmp_path)
    _cut_off_image(tmp_path)
    with registered(toy_spec(tmp_path)):
        check_datasets(toy_cfg(DATASETS__CHECK_SAMPLES=2))
        check_datasets(toy_cfg(DATASETS__CHECK_SAMPLES=0))
        with pytest.raises(DatasetError, match=r"002\.png"):
            check_datasets(toy_cfg(DATASETS__CHECK_SAMPLES=3))
        with pytest.raises(ConfigError, match="CHECK_SAMPLES is -1"):
            check_datasets(toy_cfg(DATASETS__CHECK_SAMPLES=-1))


def test_class_lists_of_train_and_test(tmp_path):
    write_toy(tmp_path)
    specs = (
        toy_spec(tmp_path, "a"),
        toy_spec(tmp_path, "b", classes=("sky", "ground"), colors=((0, 0, 0),) * 2),
    )
    with (
        registered(*specs),
        pytest.raises(DatasetError, match=r'"a" \(3 classes\) and "b" \(2 classes\) differ'),
    ):
        check_datasets(toy_cfg(train=("a",), test=("b",)))


def test_number_of_classes_of_the_head(tmp_path):
    write_toy(tmp_path)
    with (
        registered(toy_spec(tmp_path)),
        pytest.raises(ConfigError, match='NUM_CLASSES is 19, but "toy" has 3'),
    ):
        check_datasets(toy_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=19))


def test_ignore_value_of_the_head(tmp_path):
    write_toy(tmp_path)
    with (
        registered(toy_spec(tmp_path)),
        pytest.raises(ConfigError, match='IGNORE_VALUE is 254, but .*"toy" is 255'),
    ):
        check_datasets(toy_cfg(MODEL__SEM_SEG_HEAD__IGNORE_VALUE=254))


def test_unknown_name():
    with pytest.raises(ConfigError, match="'cooccurrence_val'"):
        check_datasets(toy_cfg(train=(), test=("coocurrence_val",)))


def test_all_is_well(tmp_path, caplog):
    write_toy(tmp_path, num_classes=2)
    with registered(toy_spec(tmp_path)), caplog.at_level("INFO", logger="regseg_d2"):
        check_datasets(toy_cfg(test=("toy",)))
    messages = [record.message for record in caplog.records if record.name == "regseg_d2.data.checks"]
    assert "toy: 6 image(s) to test on: one image more or less moves mIoU by points" in messages[0]
    (line,) = messages[1:]
    # 4 of 600 pixels of each label are void; class "thing" was left out on purpose.
    assert "first 6 samples are fine; 0.7 % of their pixels are ignored" in line and line.endswith(
        "there: thing."
    )


@pytest.mark.parametrize(("number", "said"), [(0, False), (1, True), (19, True), (20, False)])
def test_few_test_images_are_said(number, said):
    assert bool(few_images(number)) == said


def test_built_in_data_sets_have_one_class_list_a_family():
    for family, count in (("camvid", 11), ("cooccurrence", 10)):
        splits = ("train", "val", "test" if family == "camvid" else "swapped")
        lists = {tuple(MetadataCatalog.get(f"{family}_{split}").stuff_classes) for split in splits}
        assert len(lists) == 1 and len(lists.pop()) == count
