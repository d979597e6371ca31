"""Declarations that look at what lies there: guessed suffixes, images without labels, exact parts."""

import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.datasets.declared import read_declaration
from regseg_d2.data.datasets.splits import Part
from regseg_d2.dataset_tools.inspection.pairs import find_pairs
from tests.data.declarations import declare, declared

SPLITS = {"splits": {"all": {"images": "images", "labels": "labels"}}}


def write(folder, *names):
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def stems(folder, **changes):
    (spec,) = read_declaration(declare(folder, **{**SPLITS, **changes}))
    return [record["image_id"] for record in spec.load()]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}.jpg", "labels/{}_mask.png"),
        ("images/{}.tif", "labels/{}.tif"),
        ("images/{}.bmp", "labels/{}_L.bmp"),
        ("images/{}_rgb.tif", "labels/{}_class.tif"),
        ("images/deep/{}.JPG", "labels/deep/{}-labels.png"),
        ("images/{}.png", "labels/{}.png"),
        ("images/{}.jpg", "labels/{}.png"),
    ],
)
def test_suffixes_are_guessed(tmp_path, image, label):
    names = ["a", "b", "ab", "a_1", "10", "110"]
    for name in names:
        write(tmp_path, image.format(name), label.format(name))
    assert [stem.removeprefix("deep/") for stem in stems(tmp_path)] == sorted(names)


def test_suffixes_of_one_folder_are_guessed(tmp_path):
    write(tmp_path, *(f"both/{name}{end}" for name in ("a", "b", "c_1") for end in (".png", "_mask.png")))
    one = {"splits": {"all": {"images": "both", "labels": "both"}}}
    assert stems(tmp_path, **one) == ["a", "b", "c_1"]


def test_a_guess_is_said_and_what_is_given_is_not_guessed(tmp_path, caplog):
    caplog.set_level("INFO")
    write(
        tmp_path,
        *(
            f"{folder}{i}{end}"
            for i in range(3)
            for folder, end in (("images/", ".jpg"), ("labels/", "_m.png"))
        ),
    )
    assert len(stems(tmp_path)) == 3
    assert (
        "names end in image_suffixes: [.jpg], label_suffixes: [_m.png] (guessed from the files)"
        in caplog.text
    )
    with pytest.raises(DatasetError, match="no image of the same stem"):
        stems(tmp_path, label_suffixes=[".png"])


def test_names_that_do_not_fit_are_no_guess(tmp_path):
    write(tmp_path, "images/a.jpg", "images/b.jpg", "labels/x.png", "labels/y.png")
    with pytest.raises(DatasetError, match="2 of 2 label files have no image"):
        stems(tmp_path)


def test_images_without_a_label_are_left_out_if_told(tmp_path):
    write(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "labels/a.png", "labels/c.png")
    with pytest.raises(DatasetError, match="1 of 3 image files have no label"):
        stems(tmp_path)
    assert stems(tmp_path, leave_out="unlabelled") == ["a", "c"]
    write(tmp_path, "labels/z.png")
    with pytest.raises(DatasetError, match="1 of 3 label files have no image"):
        stems(tmp_path, leave_out="unlabelled")
    with declared(declare(tmp_path, **SPLITS, leave_out="unlabelled")):
        records, problems = find_pairs("farm_all")
    assert [record["image_id"] for record in records] == ["a", "c"]
    assert len(problems) == 1 and "z.png" in problems[0].text


@pytest.mark.parametrize("count", [1, 7, 10, 99])
def test_exact_parts_have_their_sizes_and_share_nothing(count):
    names = [f"{i:03}" for i in range(count)]
    ends = (0.0, 0.7, 0.9, 1.0)
    parts = [Part(a, b, 3, exact=True).choose(names) for a, b in zip(ends, ends[1:], strict=False)]
    assert sorted(name for part in parts for name in part) == names
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(part) - share * count) <= 1
    assert parts[0] != Part(0.0, 0.7, 4, exact=True).choose(names) or count < 50


def test_exact_is_a_key(tmp_path):
    write(
        tmp_path,
        *(
            f"{folder}/{i}{end}"
            for i in range(10)
            for folder, end in (("images", ".jpg"), ("labels", ".png"))
        ),
    )
    folders = {"images": "images", "labels": "labels", "splits": {"train": 0.8, "val": 0.2}}
    sizes = [len(spec.load()) for spec in read_declaration(declare(tmp_path, **folders, exact=True))]
    assert sizes == [8, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact": "yes"}, "'exact' is 'yes'.*expected true or false"),
        ({"leave_out": "unlabeled"}, "'leave_out' is 'unlabeled'.*expected 'unlabelled'"),
    ],
)
def test_wrong_values_are_named(tmp_path, changes, message):
    write(tmp_path, "images/a.jpg", "labels/a.png")
    with pytest.raises(ConfigError, match=message):
        stems(tmp_path, **changes)


def test_splits_of_the_same_folders_are_guessed_once(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, *(f"images/{i}.tif" for i in range(8)), *(f"labels/{i}_m.tif" for i in range(8)))
    folders = {"images": "images", "labels": "labels", "splits": {"train": 0.5, "val": 0.5}}
    specs = read_declaration(declare(tmp_path, **folders, exact=True))
    assert [len(spec.load()) for spec in specs] == [4, 4]
    assert caplog.text.count("guessed from the files") == 1
