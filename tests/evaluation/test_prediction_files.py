"""Index PNGs, and what the servers of Cityscapes and ADE20K take."""

import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.evaluation.prediction_files import PredictionFiles, prediction_format

# In the order of the training ids, with the label ids of cityscapesScripts' labels.py.
CITYSCAPES = [
    ("road", 7),
    ("sidewalk", 8),
    ("building", 11),
    ("wall", 12),
    ("fence", 13),
    ("pole", 17),
    ("traffic light", 19),
    ("traffic sign", 20),
    ("vegetation", 21),
    ("terrain", 22),
    ("sky", 23),
    ("person", 24),
    ("rider", 25),
    ("car", 26),
    ("truck", 27),
    ("bus", 28),
    ("train", 31),
    ("motorcycle", 32),
    ("bicycle", 33),
]


def write(folder, kind, names, label, image_file, image_id=""):
    files = PredictionFiles(folder, prediction_format(kind, names), len(names))
    path = files.write(label, image_file, image_id)
    assert sorted(path.parent.iterdir()) == [path]  # no temporary file is left
    return path.relative_to(folder).as_posix(), Image.open(path)


def test_cityscapes_server_gets_label_ids(tmp_path):
    names = [name for name, _ in CITYSCAPES]
    label = np.arange(19, dtype=np.uint8).reshape(1, 19)
    image = "/data/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    name, written = write(tmp_path, "cityscapes", names, label, image, "frankfurt/frankfurt_000000_000294")
    assert name == "frankfurt_000000_000294_leftImg8bit.png"
    assert written.mode == "L"
    assert np.asarray(written).tolist() == [[value for _, value in CITYSCAPES]]
    # The order of the classes is the data set's.
    _, written = write(tmp_path, "cityscapes", names[::-1], label, image)
    assert np.asarray(written).tolist() == [[value for _, value in CITYSCAPES[::-1]]]


def test_ade20k_server_gets_values_from_1(tmp_path):
    names = [f"c{i}" for i in range(150)]
    label = np.asarray([[0, 1, 149]], dtype=np.uint8)
    name, written = write(tmp_path, "ade20k", names, label, "/data/images/testing/ADE_test_00000001.jpg")
    assert name == "ADE_test_00000001.png"
    assert written.mode == "L"
    assert np.asarray(written).tolist() == [[1, 2, 150]]


def test_index_files_keep_sub_folders_and_large_indices(tmp_path):
    label = np.asarray([[0, 299]], dtype=np.int32)
    name, written = write(tmp_path, "png", [str(i) for i in range(300)], label, "/x/a/b.jpg", "a/b")
    assert (name, written.mode) == ("a/b.png", "I;16")
    assert np.asarray(written).tolist() == [[0, 299]]
    for image_id in ("", "/x/a/c.jpg", "../c"):  # nothing is written outside of the folder
        name, _ = write(tmp_path / "other", "png", ["sky"], label[:, :1], "/x/a/c.jpg", image_id)
        assert name == "c.png"


def test_classes_and_names_that_do_not_fit(tmp_path):
    with pytest.raises(
        ConfigError, match="takes the 19 classes of Cityscapes; the data set has 2: sky, road"
    ):
        prediction_format("cityscapes", ["sky", "road"])
    with pytest.raises(ConfigError, match="takes 150 classes, and the data set has 2"):
        prediction_format("ade20k", ["sky", "road"])
    label = np.zeros((2, 2), dtype=np.uint8)
    names = [name for name, _ in CITYSCAPES]
    with pytest.raises(DatasetError, match="photo.png is not named as Cityscapes"):
        write(tmp_path, "cityscapes", names, label, "photo.png")
    files = PredictionFiles(tmp_path, prediction_format("png", ["sky"]), 1)
    files.write(label, "a/1.jpg", "")
    files.write(label, "a/1.jpg", "")  # the next evaluation of the same image
    with pytest.raises(DatasetError, match="a/1.jpg and b/1.jpg would both be 1.png"):
        files.write(label, "b/1.jpg", "")
