"""CamVid: its miniature, the script that checks a copy, and the real data where it is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.checks import check_datasets
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation.as_published import prepare_camvid
from regseg_d2.dataset_tools.preparation.report import below, describe_splits
from tests.data.data_helpers import toy_cfg
from tests.dataset_tools.preparation.miniature import (
    IMAGE_KINDS,
    check_benchmark,
    draw_values,
    load_script,
    prepare,
    write_image,
    write_label,
)

_PLACE = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()
real = pytest.mark.skipif(
    not (_PLACE / "camvid" / "train").is_dir(), reason="$DETECTRON2_DATASETS/camvid is not there"
)
SIZES = {"train": 3, "val": 2, "test": 2}


@pytest.fixture
def copy(tmp_path):
    """A copy of CamVid in small, with jpg and png images; the value 11 is void."""
    labels = {}
    for split, count in SIZES.items():
        for i in range(count):
            name, suffix = f"{split}{i}", "jpg" if i else "png"
            write_image(tmp_path / "camvid" / split / f"{name}.{suffix}", IMAGE_KINDS[i if i else 0], seed=i)
            values = draw_values(range(12), seed=10 * len(split) + i)
            write_label(tmp_path / "camvid" / f"{split}annot" / f"{name}.png", values)
            labels[name] = np.where(values == 11, 255, values)
    return tmp_path, labels


def test_camvid(copy, tmp_path, monkeypatch, capsys):
    root, labels = copy
    assert prepare("camvid", root) == 0
    assert "train: 3 images, all in order" in capsys.readouterr().out
    description = json.loads((root / "camvid" / "splits.json").read_text())
    classes = load_definition("camvid").classes
    assert description["classes"] == list(classes) and description["dataset"] == "camvid"
    for split, count in SIZES.items():
        content = description["splits"][split]
        assert content["images"] == [f"{split}{i}" for i in range(count)] and content["count"] == count
        raw = np.stack([labels[name] for name in content["images"]])
        assert content["pixels"] == {name: int((raw == i).sum()) for i, name in enumerate(classes)}
        assert content["ignored_pixels"] == (raw == 255).sum() > 0
    check_benchmark(
        root,
        tmp_path / "run",
        monkeypatch,
        train="camvid_train",
        test="camvid_val",
        labels={name: label for name, label in labels.items() if not name.startswith("test")},
        definition=load_definition("camvid"),
    )


def test_faults_of_a_copy(copy, capsys):
    root, _ = copy
    with pytest.raises(DatasetError, match="has 3 images of camvid_train; expected 367"):
        prepare_camvid(root)
    with pytest.raises(DatasetError, match=r"train0\.png has 32 x 48 pixels .* expected 360 x 480"):
        describe_splits(
            {"train": below(load_definition("camvid").specs["train"], root)},
            counts=None,
            workers=0,
            size=(360, 480),
        )
    for folder, suffix in (("test", "jpg"), ("testannot", "png")):
        (root / "camvid" / folder / f"test1.{suffix}").rename(root / "camvid" / folder / f"train1.{suffix}")
    assert prepare("camvid", root) == 1
    assert "train1 is in camvid_train and in camvid_test" in capsys.readouterr().err


def test_a_value_without_a_meaning(copy, capsys):
    root, _ = copy
    write_label(root / "camvid" / "valannot" / "val0.png", np.full((32, 48), 12, dtype=np.uint8))
    assert prepare("camvid", root) == 1
    assert "val0.png holds values that mean nothing: 12 (1536 pixels)" in capsys.readouterr().err


def test_where_the_description_goes(copy, tmp_path, capsys):
    root, _ = copy
    assert prepare("camvid", root, "--output", str(tmp_path / "elsewhere.json")) == 0
    assert not (root / "camvid" / "splits.json").exists()
    assert json.loads((tmp_path / "elsewhere.json").read_text())["splits"]["val"]["count"] == 2
    (tmp_path / "file").touch()
    assert prepare("camvid", root, "--output", str(tmp_path / "file" / "splits.json")) == 1
    assert "--output" in capsys.readouterr().err
    assert prepare("camvid", root / "nowhere") == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_count_the_same(copy, tmp_path):
    root, _ = copy
    for workers in ("0", "2"):
        options = ["--root", str(root), "--workers", workers, "--partial"]
        assert load_script("camvid").main([*options, "--output", str(tmp_path / f"{workers}.json")]) == 0
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


@real
def test_real_camvid():
    cfg = toy_cfg(
        train=("camvid_train",), test=("camvid_val", "camvid_test"), MODEL__SEM_SEG_HEAD__NUM_CLASSES=11
    )
    check_datasets(cfg)
    assert [len(spec.load()) for spec in load_definition("camvid").specs.values()] == [367, 101, 233]


@real
@pytest.mark.slow
def test_real_camvid_copy_is_whole(tmp_path):
    prepare_camvid(_PLACE, workers=2, output=tmp_path / "splits.json")
    description = json.loads((tmp_path / "splits.json").read_text())
    # Void covers a few per cent; sky, building and road are the largest classes.
    pixels = description["splits"]["train"]["pixels"]
    assert sum(pixels.values()) + description["splits"]["train"]["ignored_pixels"] == 367 * 360 * 480
    assert set(sorted(pixels, key=pixels.get)[-3:]) == {"sky", "building", "road"}
