"""The demo: which files it takes, what it writes, and that its labels are the model's."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.apps.predict import InputImage, find_images, predict_files
from regseg_d2.apps.videos import PaintOptions
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.data.images import read_image
from regseg_d2.drawing.overlay import blend
from regseg_d2.drawing.pictures import class_colors, color_label
from regseg_d2.evaluation.inference import build_predictor
from regseg_d2.prediction import ClassList, Prediction, Predictor

ROOT = Path(__file__).parents[2]
CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD:
    {NUM_CLASSES: 10, IN_FEATURES: [res4], CONTEXT: FCN, CONTEXT_CHANNELS: 16, CONVS_DIM: 16}
DATASETS: {TEST: [cooccurrence_val]}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config file whose MODEL.WEIGHTS are there, and its model."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "config.yaml"
    config.write_text(CONFIG + f"OUTPUT_DIR: {folder}\n")
    torch.manual_seed(0)
    model = build_model(load_config(str(config))).eval()
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    text = config.read_text().replace("  DEVICE: cpu\n", f"  DEVICE: cpu\n  WEIGHTS: {folder}/model.pth\n")
    config.write_text(text)
    return str(config), model


def photo(path, size=(40, 56), mode="RGB", seed=0, **save):
    """Writes a smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).convert(mode).save(path, **save)
    return path


def argmax(model, path):
    image = torch.from_numpy(read_image(path).transpose(2, 0, 1).copy())
    with torch.no_grad():
        return model([{"image": image}])[0]["sem_seg"].argmax(dim=0).numpy()


def test_folder_becomes_index_colour_and_overlay_with_its_sub_folders(trained, tmp_path):
    config, model = trained
    photos = tmp_path / "photos"
    sizes = {"a.jpg": (40, 56), "sub/b.png": (33, 71), "sub/deep/c.bmp": (64, 64)}
    for seed, (name, size) in enumerate(sizes.items()):
        photo(photos / name, size, seed=seed)
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    said = []
    assert predict_files(config, [], source=str(photos), output=str(tmp_path / "out"), say=said.append)
    assert said == [f"Wrote the predictions of 3 of 3 images to {tmp_path / 'out'}"]
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before

    colors = class_colors(MetadataCatalog.get("cooccurrence_val"), 10)
    seen = set()
    for name in sizes:
        expected = argmax(model, photos / name)
        seen |= set(np.unique(expected).tolist())
        output = Path(name).with_suffix(".png")
        with Image.open(tmp_path / "out" / "labels" / output) as index:
            assert index.mode == "L"
            assert np.array_equal(np.array(index), expected)
        with Image.open(tmp_path / "out" / "colors" / output) as color:
            assert color.mode == "P"
            assert np.array_equal(np.array(color), expected)
            assert color.getpalette()[:30] == colors.ravel().tolist()
            assert np.array_equal(np.array(color.convert("RGB")), color_label(expected, colors))
        with Image.open(tmp_path / "out" / "overlays" / output) as overlay:
            height, width = expected.shape
            drawn = np.array(overlay)[:height, :width]
            assert np.array_equal(drawn, blend(read_image(photos / name), expected, colors))
    assert len(seen) > 1  # else the comparison would mean little
    # A second run over the folder that now holds the predictions, too, takes the photos only.
    shutil.copytree(photos, tmp_path / "out", dirs_exist_ok=True)
    assert len(find_images(str(tmp_path / "out"), tmp_path / "out")) == 3


def test_exif_orientation_grey_and_transparent_images(trained, tmp_path):
    config, model = trained
    upright = photo(tmp_path / "upright.png", (40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    with Image.open(upright) as image:
        image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "turned.png"), np.array(image))
    photo(tmp_path / "grey.png", (37, 41), mode="L")
    photo(tmp_path / "alpha.png", (37, 41), mode="RGBA")
    photo(tmp_path / "palette.gif", (37, 41), mode="P")
    predictor = Predictor.from_config(load_config(config))
    assert np.array_equal(predictor(tmp_path / "turned.png").labels, argmax(model, upright))
    for name in ("grey.png", "alpha.png", "palette.gif"):
        assert predictor(tmp_path / name).labels.shape == (37, 41)
        assert np.array_equal(predictor(tmp_path / name).labels, argmax(model, tmp_path / name))


def test_protocol_of_the_config_is_used(trained, tmp_path):
    config, model = trained
    path = photo(tmp_path / "large.png", (96, 160))
    keys = ["TEST.MODE", "slide", "TEST.SLIDE.CROP_SIZE", "[48, 48]", "TEST.SLIDE.STRIDE", "[32, 32]"]
    cfg = load_config(config, keys)
    labels = Predictor.from_config(cfg)(path).labels
    image = torch.from_numpy(read_image(path).transpose(2, 0, 1).copy())
    slid = build_predictor(cfg, model).scores([{"image": image}])[0]["sem_seg"].argmax(dim=0).numpy()
    assert np.array_equal(labels, slid)
    assert not np.array_equal(labels, argmax(model, path))


def test_bad_file_is_named_and_the_others_are_done(trained, tmp_path):
    config, _ = trained
    good = photo(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "fake.jpg").write_text("no image either")
    said = []
    done = predict_files(
        config, [], source=str(tmp_path / "in"), output=str(tmp_path / "out"), say=said.append
    )
    assert not done
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["good.png"] * 3
    assert len(said) == 3
    assert "cut.png cannot be read" in said[0] and "fake.jpg cannot be read" in said[1]
    assert said[2].startswith("Wrote the predictions of 1 of 3 images")


def test_input_is_never_overwritten(trained, tmp_path):
    config, _ = trained
    path = photo(tmp_path / "out" / "labels" / "a.png")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite the input .*a.png"):
        predict_files(config, [], source=str(path), output=str(tmp_path / "out"))
    assert path.read_bytes() == before


def test_names_of_files_folders_and_patterns(tmp_path):
    out = tmp_path / "out"
    for name in ("a.jpg", "x/b.PNG", "x/y/c.tif", ".hidden.jpg", "d.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    folder = tmp_path / "in"

    def names(source):
        return [image.name for image in find_images(str(source), out)]

    assert find_images(str(folder / "a.jpg"), out) == [InputImage(folder / "a.jpg", "a")]
    assert names(folder) == ["a", "x/b", "x/y/c"]
    assert names(folder / "**" / "*.tif") == ["x/y/c"]
    assert names(folder / "x" / "*") == ["b"]
    (folder / "a.png").touch()  # the same stem as a.jpg: all names keep their suffix
    assert names(folder) == ["a.jpg", "a.png", "x/b.PNG", "x/y/c.tif"]
    (folder / "odd [1].jpg").touch()
    assert names(folder / "odd [1].jpg") == ["odd [1]"]
    with pytest.raises(ConfigError, match="nowhere, which does not exist"):
        find_images(str(tmp_path / "nowhere"), out)
    with pytest.raises(ConfigError, match=r"\*\.bmp names no image"):
        find_images(str(folder / "*.bmp"), out)


def test_more_classes_than_a_byte_holds(tmp_path):
    label = np.array([[0, 255, 256, 299]], dtype=np.int32)
    colors = np.arange(900).reshape(300, 3).astype(np.uint8)
    classes = ClassList(tuple(f"class {i}" for i in range(300)), colors)
    Prediction(label, np.zeros((1, 4, 3), np.uint8), classes).save(tmp_path, "sub/a.jpg")
    with Image.open(tmp_path / "labels" / "sub" / "a.jpg.png") as index:
        assert np.array(index).tolist() == [[0, 255, 256, 299]]
    with Image.open(tmp_path / "colors" / "sub" / "a.jpg.png") as color:
        assert color.mode == "RGB"
        assert np.array(color).tolist() == [colors[[0, 255, 256, 299]].tolist()]


def test_images_that_differ_in_their_suffix_only(trained, tmp_path, monkeypatch):
    config, model = trained
    photo(tmp_path / "a.jpg", seed=1)
    photo(tmp_path / "a.png", seed=2)
    monkeypatch.chdir(tmp_path)
    for source in (".", "*.*"):
        assert predict_files(config, [], source=source, output=f"out {len(source)}", say=lambda line: None)
        for name in ("a.jpg", "a.png"):
            with Image.open(tmp_path / f"out {len(source)}" / "labels" / f"{name}.png") as index:
                assert np.array_equal(np.array(index), argmax(model, tmp_path / name))


def test_arguments_that_cannot_be_used(trained, tmp_path):
    config, _ = trained
    path = photo(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--opacity is 1\.5"):
        predict_files(config, [], source=str(path), options=PaintOptions(opacity=1.5))
    with pytest.raises(ConfigError, match="name no data set"):
        predict_files(config, ["DATASETS.TEST", "[]"], source=str(path))
    with pytest.raises(ConfigError, match='"camvid_val" has 11 classes'):
        predict_files(config, ["DATASETS.TEST", "[camvid_val]"], source=str(path))


@pytest.mark.slow
def test_exit_status_of_the_tool(trained, tmp_path):
    config, _ = trained
    photo(tmp_path / "in" / "a.png")
    tool = [sys.executable, str(ROOT / "tools" / "demo.py"), "--config-file", config]

    def run(*arguments):
        return subprocess.run([*tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    assert run("--input", tmp_path / "in", "--output", tmp_path / "out").returncode == 0
    (tmp_path / "in" / "b.png").write_text("no image")
    result = run("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert result.returncode == 1 and "Left out: The image file" in result.stdout
    result = run("--input", tmp_path / "nowhere")
    assert result.returncode == 2 and result.stderr.startswith("Error: --input is ")
    assert "Traceback" not in result.stderr
