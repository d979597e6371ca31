"""Miniatures of Cityscapes, ADE20K and VOC 2012 + SBD: prepared by the script, trained on, evaluated."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog
from PIL import Image, ImageDraw

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation import preparation
from regseg_d2.dataset_tools.preparation.voc import read_sbd_label
from tests.dataset_tools.preparation.miniature import (
    IMAGE_KINDS,
    check_benchmark,
    draw_values,
    load_script,
    prepare,
    write_image,
    write_label,
)

# Label ids of Cityscapes that are evaluated, in the order of their train ids.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def mapped(values: np.ndarray, table: dict[int, int]) -> np.ndarray:
    return np.array([[table.get(value, 255) for value in row] for row in values.tolist()])


# --------------------------------------------------------------------------------------------- Cityscapes


def write_cityscapes(root, kind, split, city, numbers, values):
    """Writes images with all files that the download has for them; returns the labels by ``image_id``."""
    annotation, folder, labels = f"gt{kind.capitalize()}", root / "cityscapes", {}
    for number in numbers:
        name = f"{city}_{number:06d}_000019"
        write_image(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed=number)
        ids = draw_values(values, seed=number)
        stem = folder / annotation / split / city / f"{name}_{annotation}"
        write_label(stem.with_name(f"{stem.name}_labelIds.png"), ids)
        Image.fromarray(ids.astype(np.uint16) * 1000).save(f"{stem}_instanceIds.png")
        Image.fromarray(np.stack([ids] * 4, axis=2)).save(f"{stem}_color.png")
        stem.with_name(f"{stem.name}_polygons.json").write_text('{"objects": []}')
        labels[f"{city}/{name}"] = mapped(ids, {value: i for i, value in enumerate(CITYSCAPES_IDS)})
    return labels


# Every id of the table; 255 is a license plate's -1 in 8 bits.
ALL_IDS = [*range(34), 255]


@pytest.fixture
def cityscapes(tmp_path):
    train = write_cityscapes(tmp_path, "fine", "train", "aachen", range(3), ALL_IDS)
    val = write_cityscapes(tmp_path, "fine", "val", "lindau", range(5, 7), ALL_IDS)
    return tmp_path, {**train, **val}


def test_cityscapes_fine(cityscapes, tmp_path, monkeypatch, capsys):
    root, labels = cityscapes
    # The test split's public labels hold void only.
    write_cityscapes(root, "fine", "test", "berlin", [9], [0, 1, 3])
    assert prepare("cityscapes", root) == 0
    out = capsys.readouterr().out
    assert "labelTrainIds: 6 written" in out and "not needed" in out and "coarse_train_extra" in out
    check_benchmark(
        root,
        tmp_path / "run",
        monkeypatch,
        train="cityscapes_fine_sem_seg_train",
        test="cityscapes_fine_sem_seg_val",
        labels=labels,
        definition=load_definition("cityscapes"),
    )
    (record,) = DatasetCatalog.get("cityscapes_fine_sem_seg_test")
    assert record["image_id"] == "berlin/berlin_000009_000019"
    for name, label in labels.items():
        path = root / "cityscapes" / "gtFine" / ("train" if "aachen" in name else "val")
        np.testing.assert_array_equal(np.array(Image.open(path / f"{name}_gtFine_labelTrainIds.png")), label)
    description = json.loads((root / "cityscapes" / "splits.json").read_text())
    train = np.stack([label for name, label in labels.items() if "aachen" in name])
    assert description["splits"]["fine_train"]["pixels"]["car"] == (train == 13).sum() > 0
    assert description["splits"]["fine_train"]["ignored_pixels"] == (train == 255).sum()
    assert description["splits"]["fine_test"]["ignored_pixels"] == 32 * 48
    # A second run makes nothing again.
    assert prepare("cityscapes", root) == 0
    assert "labelTrainIds: 0 written, 6 were there" in capsys.readouterr().out


def test_cityscapes_coarse(cityscapes, tmp_path, monkeypatch):
    root, _ = cityscapes
    extra = write_cityscapes(root, "coarse", "train_extra", "augsburg", range(3), ALL_IDS)
    val = write_cityscapes(root, "coarse", "val", "lindau", range(5, 7), ALL_IDS)
    assert prepare("cityscapes", root) == 0
    check_benchmark(
        root,
        tmp_path / "run",
        monkeypatch,
        train="cityscapes_coarse_sem_seg_train_extra",
        test="cityscapes_coarse_sem_seg_val",
        labels={**extra, **val},
        definition=load_definition("cityscapes"),
    )
    assert (root / "cityscapes/gtCoarse/val/lindau/lindau_000005_000019_gtCoarse_labelTrainIds.png").is_file()


def test_train_ids_are_those_that_the_official_script_draws(cityscapes):
    """It draws polygons in the order of the file with train ids for values, and no license plates."""
    root, _ = cityscapes
    objects = [
        (7, [0, 12, 47, 12, 47, 31, 0, 31]),
        (26, [8, 8, 30, 8, 30, 24, 8, 24]),
        (-1, [10, 20, 16, 20, 16, 23]),
    ]
    objects += [
        (9, [36, 14, 47, 14, 47, 20]),
        (24, [20, 2, 26, 2, 26, 28, 20, 28]),
        (1, [0, 28, 47, 28, 47, 31, 0, 31]),
    ]
    train_ids = {value: i for i, value in enumerate(CITYSCAPES_IDS)}
    ids, expected = Image.new("L", (48, 32), 0), Image.new("L", (48, 32), 255)
    for value, polygon in objects:
        if value >= 0:
            ImageDraw.Draw(ids).polygon(polygon, fill=value)
            ImageDraw.Draw(expected).polygon(polygon, fill=train_ids.get(value, 255))
    stem = root / "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine"
    ids.save(f"{stem}_labelIds.png")
    assert prepare("cityscapes", root) == 0
    np.testing.assert_array_equal(np.array(Image.open(f"{stem}_labelTrainIds.png")), np.array(expected))


def test_faults_of_a_copy_of_cityscapes(cityscapes, capsys):
    root, _ = cityscapes
    assert prepare("cityscapes", root, "--archives", str(root)) == 1
    assert "None of leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip" in capsys.readouterr().err
    label = root / "cityscapes/gtFine/val/lindau/lindau_000006_000019_gtFine_labelIds.png"
    whole = label.read_bytes()
    label.write_bytes(whole[: len(whole) // 2])
    assert prepare("cityscapes", root) == 1
    assert f"{label} cannot be read" in capsys.readouterr().err
    label.write_bytes(whole)
    write_label(label, np.full((32, 48), 34, np.uint8))
    assert prepare("cityscapes", root) == 1
    assert "34 (1536 pixels)" in capsys.readouterr().err
    label.unlink()
    assert prepare("cityscapes", root) == 1
    assert "1 of 2 image files have no label" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- ADE20K


@pytest.fixture
def ade20k(tmp_path):
    root, labels = tmp_path / "ADEChallengeData2016", {}
    # The number of the picture, the kind of its image; each of the 151 values is in one of them.
    for split, short, count in (("training", "train", 4), ("validation", "val", 4)):
        for number in range(1, count + 1):
            name = f"ADE_{short}_{number:08d}"
            write_image(root / "images" / split / f"{name}.jpg", IMAGE_KINDS[number - 1], seed=number)
            values = draw_values([0, *range(number, 151, 2)], seed=number)
            write_label(root / "annotations" / split / f"{name}.png", values)
            labels[name] = np.where(values == 0, 255, values.astype(int) - 1)
    return tmp_path, labels


def test_ade20k(ade20k, tmp_path, monkeypatch, capsys):
    root, labels = ade20k
    assert len(np.unique(np.stack(list(labels.values())))) == 151
    assert prepare("ade20k", root) == 0
    assert "train: 4 images, all in order" in capsys.readouterr().out
    check_benchmark(
        root,
        tmp_path / "run",
        monkeypatch,
        train="ade20k_sem_seg_train",
        test="ade20k_sem_seg_val",
        labels=labels,
        definition=load_definition("ade20k"),
    )


def test_ade20k_from_its_archive(ade20k, tmp_path, monkeypatch, capsys):
    root, _ = ade20k
    archive = tmp_path / "downloads" / "ADEChallengeData2016.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((root / "ADEChallengeData2016").rglob("*.*")):
            file.write(path, path.relative_to(root))
    target = tmp_path / "empty"
    assert prepare("ade20k", target, "--archives", str(archive.parent)) == 1
    assert "expected 7328b3957e407ddae1d3cbf487f149ef: it is damaged" in capsys.readouterr().err
    # The miniature is not what is published; with its own checksum it is taken.
    own = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    definition = dataclasses.replace(load_definition("ade20k"), checksums={archive.name: own})
    monkeypatch.setattr(preparation, "load_definition", lambda name: definition)
    assert prepare("ade20k", target, "--archives", str(archive.parent)) == 0
    assert "unpacked 16 files" in capsys.readouterr().out
    assert (
        json.loads((target / "ADEChallengeData2016" / "splits.json").read_text())["splits"]["val"]["count"]
        == 4
    )


def test_published_numbers_are_checked(ade20k, capsys):
    root, _ = ade20k
    assert load_script("ade20k").main(["--root", str(root), "--workers", "0"]) == 1
    assert "has 4 images of ade20k_sem_seg_train; expected 20210" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- VOC and SBD

VOC_TRAIN, VOC_VAL = ("2007_000032", "2007_000039", "2008_000008"), ("2007_000033", "2011_003276")
# Of both lists of SBD some images are in VOC's train and val splits.
SBD_TRAIN = ("2007_000032", "2007_000033", "2008_000002", "2008_000003")
SBD_VAL = ("2008_000008", "2011_003276", "2008_000005", "2010_000001")
ONLY_SBD = ("2008_000002", "2008_000003", "2008_000005", "2010_000001")


def write_mat(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    annotation = {
        "Segmentation": values,
        "Boundaries": np.zeros((20, 1), object),
        "CategoriesPresent": np.unique(values[values > 0]).reshape(-1, 1),
    }
    scipy.io.savemat(path, {"GTcls": annotation}, do_compression=True)


@pytest.fixture
def voc(tmp_path):
    root, labels = tmp_path / "VOCdevkit" / "VOC2012", {}
    lists = {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": sorted(VOC_TRAIN + VOC_VAL)}
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    palette = load_definition("voc").colors
    palette = [*palette, *[(9, 9, 9)] * (255 - len(palette)), (224, 224, 192)]
    for number, name in enumerate([*VOC_TRAIN, *VOC_VAL, *ONLY_SBD]):
        write_image(root / "JPEGImages" / f"{name}.jpg", IMAGE_KINDS[number % 4], seed=number)
        if name not in ONLY_SBD:
            labels[name] = draw_values([*range(21), 255], seed=number)
            write_label(root / "SegmentationClass" / f"{name}.png", labels[name], palette)
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    for number, name in enumerate(sorted({*SBD_TRAIN, *SBD_VAL})):
        values = draw_values(range(21), seed=50 + number)
        write_mat(sbd / "cls" / f"{name}.mat", values)
        labels.setdefault(name, values)
    for split, names in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (sbd / f"{split}.txt").write_text("\n".join(names) + "\n")
    # Images of other tasks, without a segmentation.
    write_image(root / "JPEGImages" / "2009_009999.jpg")
    return tmp_path, labels


@pytest.mark.parametrize("train", ["train", "train_aug"])
def test_voc(voc, tmp_path, monkeypatch, capsys, train):
    root, labels = voc
    assert prepare("voc", root) == 0
    assert "SegmentationClassAug: 7 labels written" in capsys.readouterr().out
    names = VOC_TRAIN if train == "train" else sorted({*VOC_TRAIN, *ONLY_SBD})
    check_benchmark(
        root,
        tmp_path / "run",
        monkeypatch,
        train=f"voc_2012_sem_seg_{train}",
        test="voc_2012_sem_seg_val",
        labels={name: labels[name] for name in [*names, *VOC_VAL]},
        definition=load_definition("voc"),
    )
    assert [r["image_id"] for r in DatasetCatalog.get("voc_2012_sem_seg_trainval")] == sorted(
        VOC_TRAIN + VOC_VAL
    )


@pytest.mark.slow
def test_the_command_in_several_processes(voc):
    """As a user runs it: an own process, which starts others, and the folder from the environment."""
    root, labels = voc
    script = Path(__file__).parents[3] / "datasets" / "prepare_voc.py"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    command = [sys.executable, str(script), "--workers", "2", "--partial"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "SegmentationClassAug: 7 labels written" in result.stdout
    for name in {*VOC_TRAIN, *ONLY_SBD}:
        made = np.array(Image.open(root / f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png"))
        np.testing.assert_array_equal(made, labels[name])


def test_voc_without_sbd(voc, capsys):
    root, _ = voc
    (root / "benchmark_RELEASE").rename(root / "elsewhere")
    assert prepare("voc", root) == 0
    assert "train_aug was not prepared" in capsys.readouterr().out
    assert not (root / "VOCdevkit/VOC2012/SegmentationClassAug").exists()


def test_preparation_of_voc_goes_on_where_it_stopped(voc, capsys):
    root, labels = voc
    damaged = root / "benchmark_RELEASE/dataset/cls/2008_000005.mat"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert prepare("voc", root) == 1
    assert f"{damaged} cannot be read" in capsys.readouterr().err
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    assert not (lists / "trainaug.txt").exists(), "a list names only what is there"
    made = len(list((root / "VOCdevkit/VOC2012/SegmentationClassAug").glob("*.png")))
    assert 0 < made < 7
    damaged.write_bytes(whole)
    assert prepare("voc", root) == 0
    assert f"{7 - made} labels written, {made} were there" in capsys.readouterr().out
    assert (lists / "trainaug.txt").read_text().split() == sorted({*VOC_TRAIN, *ONLY_SBD})


def test_faults_of_a_copy_of_voc(voc, tmp_path, monkeypatch, capsys):
    root, _ = voc
    (root / "benchmark_RELEASE/dataset/cls/2010_000001.mat").rename(tmp_path / "other.mat")
    assert prepare("voc", root) == 1
    assert "1 of 4 annotations are not below" in capsys.readouterr().err
    (tmp_path / "other.mat").rename(root / "benchmark_RELEASE/dataset/cls/2010_000001.mat")
    (root / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg").unlink()
    assert prepare("voc", root) == 1
    assert '"2007_000033"' in capsys.readouterr().err
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"trainaug\.txt does not exist.*datasets/README\.md"):
        load_definition("voc").specs["train_aug"].load()


def test_counts_of_sbd_are_checked(voc, capsys):
    root, _ = voc
    assert load_script("voc").main(["--root", str(root), "--workers", "0"]) == 1
    assert "has 4 names in train.txt; expected 8498" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, words",
    [
        ({"GTinst": {"Segmentation": np.zeros((4, 6), np.uint8)}}, "no variable GTcls"),
        ({"GTcls": {"Boundaries": np.zeros((4, 6), np.uint8)}}, "no annotation of SBD"),
        ({"GTcls": np.zeros((4, 6), np.uint8)}, "no annotation of SBD"),
        ({"GTcls": {"Segmentation": np.full((4, 6), 21, np.uint8)}}, "holds 21; expected .* 0 to 20"),
        ({"GTcls": {"Segmentation": np.full((4, 6), 0.5)}}, "holds 0.5"),
    ],
)
def test_other_matlab_files_are_refused(tmp_path, content, words):
    scipy.io.savemat(tmp_path / "a.mat", content)
    with pytest.raises(DatasetError, match=words):
        read_sbd_label(tmp_path / "a.mat")
