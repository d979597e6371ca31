"""CamVid's description, the script that checks a copy, and the real data where it is at hand."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import regseg_d2.data  # noqa: F401  registers the data sets
from regseg_d2.data.checks import check_datasets
from regseg_d2.data.datasets.camvid import CAMVID_CLASSES, camvid_spec
from regseg_d2.data.labels import label_reader_for
from regseg_d2.errors import DatasetError
from tests.data.data_helpers import toy_cfg

_SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_camvid.py"
_PLACE = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()
real = pytest.mark.skipif(
    not (_PLACE / "camvid" / "train").is_dir(), reason="$DETECTRON2_DATASETS/camvid is not there"
)
SIZES = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_camvid", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """A copy of CamVid in small: 6 images of 4 x 6 pixels, jpg and png."""
    rng = np.random.default_rng(0)
    for split, count in SIZES.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            label = rng.integers(0, 12, (4, 6), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "camvid" / split / f"{split}{i}.{'jpg' if i else 'png'}")
            Image.fromarray(label).save(tmp_path / "camvid" / f"{split}annot" / f"{split}{i}.png")
    return tmp_path


def test_void_is_ignored(copy, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(copy))
    record = DatasetCatalog.get("camvid_train")[0]
    raw = np.array(Image.open(record["sem_seg_file_name"]))
    assert (raw == 11).any()
    label = label_reader_for("camvid_train")(record["sem_seg_file_name"])
    np.testing.assert_array_equal(label, np.where(raw == 11, 255, raw))


def test_description(script, copy):
    description = script.describe(copy, SIZES, (4, 6))
    assert description["classes"] == list(CAMVID_CLASSES)
    for split, count in SIZES.items():
        content = description["splits"][split]
        assert content["images"] == [f"{split}{i}" for i in range(count)] and content["count"] == count
        raw = np.stack([np.array(Image.open(path)) for path in (copy / "camvid" / f"{split}annot").iterdir()])
        assert content["pixels"] == {name: int((raw == i).sum()) for i, name in enumerate(CAMVID_CLASSES)}
        assert content["ignored_pixels"] == (raw == 11).sum()


def test_faults_of_a_copy(script, copy):
    with pytest.raises(DatasetError, match="train below .* has 3 images; expected 4"):
        script.describe(copy, {**SIZES, "train": 4}, (4, 6))
    with pytest.raises(DatasetError, match=r"train0\.png has 4 x 6 pixels .* expected 360 x 480"):
        script.describe(copy, SIZES)
    for folder, suffix in (("test", "jpg"), ("testannot", "png")):
        (copy / "camvid" / folder / f"test1.{suffix}").rename(copy / "camvid" / folder / f"train0.{suffix}")
    with pytest.raises(DatasetError, match="train0 is in the splits train and test"):
        script.describe(copy, SIZES, (4, 6))
    Image.fromarray(np.full((4, 6), 12, dtype=np.uint8)).save(copy / "camvid" / "valannot" / "val0.png")
    with pytest.raises(DatasetError, match=r"val0\.png .*12 \(24 pixels\)"):
        script.describe(copy, SIZES, (4, 6))


def test_command_line(script, copy, monkeypatch, capsys):
    monkeypatch.setattr(script, "SPLIT_SIZES", SIZES)
    monkeypatch.setattr(script.describe, "__defaults__", (SIZES, (4, 6)))
    assert script.main(["--root", str(copy)]) == 0
    written = json.loads((copy / "camvid" / "splits.json").read_text())
    assert written == script.describe(copy)
    assert "camvid_train: 3 images" in capsys.readouterr().out
    (copy / "file").touch()
    assert script.main(["--root", str(copy), "--output", str(copy / "file" / "splits.json")]) == 1
    assert "--output" in capsys.readouterr().err
    assert script.main(["--root", str(copy / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


@real
def test_real_camvid(script):
    cfg = toy_cfg(
        train=("camvid_train",), test=("camvid_val", "camvid_test"), MODEL__SEM_SEG_HEAD__NUM_CLASSES=11
    )
    check_datasets(cfg)
    assert [len(camvid_spec(split).load()) for split in ("train", "val", "test")] == [367, 101, 233]


@real
@pytest.mark.slow
def test_real_camvid_copy_is_whole(script):
    description = script.describe(_PLACE)
    # Void covers a few per cent; sky, building and road are the largest classes.
    pixels = description["splits"]["train"]["pixels"]
    assert sum(pixels.values()) + description["splits"]["train"]["ignored_pixels"] == 367 * 360 * 480
    assert set(sorted(pixels, key=pixels.get)[-3:]) == {"sky", "building", "road"}
