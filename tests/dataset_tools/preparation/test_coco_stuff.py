"""COCO-Stuff 10K and 164K in small, the whole way to mIoU; faults of a copy; a conversion that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.labels import label_reader_for
from regseg_d2.dataset_tools.preparation.as_published import prepare_coco_stuff_164k
from regseg_d2.dataset_tools.preparation.coco_stuff_10k import prepare_coco_stuff_10k
from tests.dataset_tools.preparation.miniature import (
    check_benchmark,
    draw_values,
    prepare,
    write_image,
    write_label,
)

ROOT = Path(__file__).parents[3]
# Ids of things that nothing is labelled with.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
IDS = [value for value in range(1, 183) if value not in GAPS]
KINDS = ("rgb", "grey", "cmyk", "rgb")


def class_of(ids):
    """Class index of ids: their number less those of the gaps below; 255 for 0."""
    ids = np.asarray(ids).astype(int)
    return np.where(ids == 0, 255, ids - 1 - np.searchsorted(GAPS, ids))


def drawn_ids(seed):
    """A label of half of the ids, and of unlabeled pixels."""
    values = np.array([0, 0, *IDS[seed % 2 :: 2]])
    return values[draw_values(range(len(values)), seed=seed)]


def matlab(ids, names=182):
    """What a file of version 1.1 holds; MATLAB's numbers are doubles."""
    cells = np.array([[f"class {i}"] for i in range(names)], dtype=object)
    captions = np.array([["A picture."], ["Another."]], dtype=object)
    return {"S": ids.astype(float), "names": cells, "captions": captions, "regionMapStuff": ids + 1}


SPLITS_10K = {"train": (0, 1, 2), "test": (3, 4)}


def name_10k(number):
    return f"COCO_train2014_{number:012d}"


def write_10k(root, splits=SPLITS_10K):
    folder = root / "coco_stuff10k"
    for place in ("annotations", "imageLists"):
        (folder / place).mkdir(parents=True)
    for split, numbers in splits.items():
        names = [name_10k(number) for number in numbers]
        (folder / "imageLists" / f"{split}.txt").write_text("".join(f"{name}\r\n" for name in names))
        for number, name in zip(numbers, names, strict=True):
            write_image(folder / "images" / f"{name}.jpg", kind=KINDS[number % len(KINDS)], seed=number)
            savemat(folder / "annotations" / f"{name}.mat", matlab(drawn_ids(number)), do_compression=True)
    return folder


@pytest.fixture
def folder_10k(tmp_path):
    return write_10k(tmp_path)


def test_10k_whole_way(folder_10k, tmp_path, monkeypatch, capsys):
    assert prepare("coco_stuff_10k", tmp_path) == 0
    assert "labels: 5 written, 0 were there" in capsys.readouterr().out
    check_benchmark(
        tmp_path,
        tmp_path / "out",
        monkeypatch,
        train="coco_stuff_10k_sem_seg_train",
        test="coco_stuff_10k_sem_seg_test",
        labels={name_10k(number): class_of(drawn_ids(number)) for number in range(5)},
        definition=load_definition("coco_stuff_10k"),
    )
    description = json.loads((folder_10k / "splits.json").read_text())
    truth = np.concatenate([class_of(drawn_ids(number)) for number in (3, 4)])
    assert description["splits"]["test"]["images"] == [name_10k(3), name_10k(4)]
    assert list(description["splits"]["test"]["pixels"].values()) == [
        int((truth == i).sum()) for i in range(171)
    ]
    assert description["splits"]["test"]["ignored_pixels"] == (truth == 255).sum()


def test_10k_faults_of_a_copy(folder_10k, tmp_path):
    with pytest.raises(DatasetError, match="has 3 names in imageLists/train.txt; expected 9000"):
        prepare_coco_stuff_10k(tmp_path)
    path = folder_10k / "annotations" / f"{name_10k(1)}.mat"
    savemat(path, matlab(drawn_ids(1) + 1, names=172))
    with pytest.raises(DatasetError, match="1.mat has 172 names .* expected 182, as in version 1.1"):
        prepare_coco_stuff_10k(tmp_path, partial=True)
    savemat(path, matlab(np.full((4, 4), 183)))
    with pytest.raises(
        DatasetError, match=r"S in .*1.mat holds 183\.0; expected whole numbers from 0 to 182"
    ):
        prepare_coco_stuff_10k(tmp_path, partial=True)
    savemat(path, matlab(np.full((32, 48), 12)))  # street sign, an id that no label has
    with pytest.raises(DatasetError, match=r"1.png holds values that mean nothing: 12 \(1536 pixels\)"):
        prepare_coco_stuff_10k(tmp_path, partial=True)
    (folder_10k / "labels" / f"{name_10k(1)}.png").unlink()
    savemat(path, matlab(drawn_ids(1)[:16]))
    with pytest.raises(DatasetError, match="1.jpg has 32 x 48 pixels .* but its label .*1.png has 16 x 48"):
        prepare_coco_stuff_10k(tmp_path, partial=True)
    path.unlink()
    with pytest.raises(DatasetError, match=f"1 of 3 annotations of train .*: {name_10k(1)}.mat"):
        prepare_coco_stuff_10k(tmp_path, partial=True)


def test_10k_an_image_in_both_splits(tmp_path):
    write_10k(tmp_path, {"train": (0, 1), "test": (1, 2)})
    with pytest.raises(
        DatasetError, match=f"{name_10k(1)} is in coco_stuff_10k_sem_seg_train and in coco_stuff"
    ):
        prepare_coco_stuff_10k(tmp_path, partial=True)


def test_10k_from_its_archive(folder_10k, tmp_path):
    archive = tmp_path / "downloads" / "cocostuff-10k-v1.1.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder_10k.rglob("*.*")):
            file.write(path, path.relative_to(folder_10k))
    root = tmp_path / "fresh"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="v1.1.zip is cut off or damaged"):
        prepare_coco_stuff_10k(root, partial=True, archives=archive.parent)
    archive.write_bytes(whole)
    prepare_coco_stuff_10k(root, partial=True, archives=archive.parent)
    made = np.array(Image.open(root / "coco_stuff10k" / "labels" / f"{name_10k(4)}.png"))
    np.testing.assert_array_equal(made, drawn_ids(4))


def start_10k(root, workers):
    """Starts the script in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "datasets" / "prepare_coco_stuff_10k.py"), "--partial"]
        + ["--root", str(root), "--workers", str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


COUNT = 120  # of which the conversion is killed after 10 or some more


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_10k_goes_on_after_a_kill(tmp_path, workers):
    numbers = {"train": tuple(range(COUNT - 1)), "test": (COUNT - 1,)}
    folder = write_10k(tmp_path, numbers)
    labels = folder / "labels"
    process = start_10k(tmp_path, workers)
    deadline = time.monotonic() + 120
    while not labels.is_dir() or len(list(labels.glob("*.png"))) < 10:
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    done = {path: path.stat().st_mtime_ns for path in labels.glob("*.png")}
    assert 10 <= len(done) < COUNT, "the conversion was not stopped in the middle"
    if workers:
        process = start_10k(tmp_path, workers)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-3000:]
    else:
        output = "\n".join(prepare_coco_stuff_10k(tmp_path, partial=True))
    assert f"{COUNT - len(done)} written, {len(done)} were there" in output
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(labels.glob("*.partial")) and not list(labels.glob(".*.partial"))
    for number in range(COUNT):
        made = np.array(Image.open(labels / f"{name_10k(number)}.png"))
        np.testing.assert_array_equal(made, drawn_ids(number))


SPLITS_164K = {"train": (9, 25, 30), "val": (139, 632)}


@pytest.fixture
def folder_164k(tmp_path):
    folder = tmp_path / "coco_stuff164k"
    for split, numbers in SPLITS_164K.items():
        for number in numbers:
            name = f"{split}2017/{number:012d}"
            kind = {25: "grey", 30: "cmyk", 632: "cmyk"}.get(number, "rgb")
            write_image(folder / "images" / f"{name}.jpg", kind=kind, seed=number)
            # uint8: 0 becomes 255.
            write_label(folder / "annotations" / f"{name}.png", (drawn_ids(number) - 1).astype(np.uint8))
    return folder


def test_164k_whole_way(folder_164k, tmp_path, monkeypatch, capsys):
    assert (np.array(Image.open(folder_164k / "annotations/val2017/000000000139.png")) == 255).any()
    assert prepare("coco_stuff_164k", tmp_path) == 0
    assert "val: 2 images" in capsys.readouterr().out
    numbers = [number for split in SPLITS_164K.values() for number in split]
    check_benchmark(
        tmp_path,
        tmp_path / "out",
        monkeypatch,
        train="coco_stuff_164k_sem_seg_train",
        test="coco_stuff_164k_sem_seg_val",
        labels={f"{number:012d}": class_of(drawn_ids(number)) for number in numbers},
        definition=load_definition("coco_stuff_164k"),
    )


def test_164k_faults_of_a_copy(folder_164k, tmp_path):
    with pytest.raises(DatasetError, match="has 3 images .* expected 118287"):
        prepare_coco_stuff_164k(tmp_path)
    label = folder_164k / "annotations" / "val2017" / "000000000632.png"
    whole = label.read_bytes()
    write_label(label, np.full((32, 48), 11, np.uint8))
    with pytest.raises(DatasetError, match=r"632.png holds values that mean nothing: 11 \(1536 pixels\)"):
        prepare_coco_stuff_164k(tmp_path, partial=True)
    label.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="632.png cannot be read"):
        prepare_coco_stuff_164k(tmp_path, partial=True)
    label.unlink()
    with pytest.raises(DatasetError, match="1 of 2 image files have no label .*632.jpg"):
        prepare_coco_stuff_164k(tmp_path, partial=True)
    (tmp_path / "val2017.zip").write_bytes(b"PK")
    with pytest.raises(
        DatasetError, match="val2017.zip has the md5 .* expected 442b8da7639aecaf257c1dceb8ba8c80"
    ):
        prepare_coco_stuff_164k(tmp_path, partial=True, archives=tmp_path)


def test_164k_labels_are_unpacked_beside_the_images(folder_164k, tmp_path):
    archive = tmp_path / "stuffthingmaps_trainval2017.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((folder_164k / "annotations").rglob("*.png")):
            file.write(path, path.relative_to(folder_164k / "annotations"))
            path.unlink()
    prepare_coco_stuff_164k(tmp_path, partial=True, archives=tmp_path)
    assert len(list((folder_164k / "annotations").rglob("*.png"))) == 5


def test_both_name_the_classes_alike():
    """Ids of the authors' labels.txt: a thing and a stuff class on either side of a gap, first and last."""
    for name, shift in (("coco_stuff_10k", 0), ("coco_stuff_164k", 1)):
        definition = load_definition(name)
        named = {
            value + shift: definition.classes[index]
            for value, index in definition.label_map.items()
            if index != 255
        }
        assert sorted(named) == IDS
        assert {value: class_of(value) for value in IDS} == {
            value: definition.classes.index(named[value]) for value in IDS
        }
        known = {
            1: "person",
            11: "fire hydrant",
            13: "stop sign",
            90: "toothbrush",
            92: "banner",
            182: "wood",
        }
        assert {value: named[value] for value in known} == known
    reader = label_reader_for("coco_stuff_10k_sem_seg_test")
    assert reader.label_map[0] == 255 and 255 not in reader.label_map
