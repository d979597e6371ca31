"""The pictures of training samples show what the loader hands to the network, pixel for pixel."""

import itertools

import numpy as np
import pytest
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.data.loader import build_train_loader
from regseg_d2.dataset_tools.inspection.training_samples import draw_training_samples, training_samples
from regseg_d2.drawing.overlay import blend
from tests.data.data_helpers import CLASSES, COLORS, registered, toy_cfg, toy_spec, write_toy

CONFIG = """
DATASETS: {TRAIN: [toy]}
MODEL: {SEM_SEG_HEAD: {NUM_CLASSES: 3}}
INPUT: {CROP: {SIZE: [24, 40]}, COLOR_JITTER: {BRIGHTNESS: 0.3}}
SOLVER: {IMS_PER_BATCH: 4}
DATALOADER: {NUM_WORKERS: 0}
SEED: 5
"""


@pytest.fixture
def config(tmp_path):
    """A config of six images of 20 x 30 pixels, which crops of 24 x 40 often pad."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    with registered(toy_spec(write_toy(tmp_path / "toy"))):
        yield str(tmp_path / "config.yaml")


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_pictures_are_the_samples_of_the_loader(config, tmp_path):
    paths = draw_training_samples(config, [], number=7, output=str(tmp_path / "out"))
    assert len(paths) == len(set(paths)) == len(list((tmp_path / "out").iterdir())) == 7
    cfg = toy_cfg(INPUT__CROP__SIZE=[24, 40], INPUT__COLOR_JITTER__BRIGHTNESS=0.3)
    samples = itertools.chain.from_iterable(build_train_loader(cfg, seed=5))
    padded = 0
    for path, sample in zip(paths, samples, strict=False):
        image, label = sample["image"].permute(1, 2, 0).numpy(), sample["sem_seg"].numpy()
        picture = pixels(path)
        assert path.stem.endswith(sample["image_id"])
        assert np.array_equal(picture[:24, :40], image)
        assert np.array_equal(picture[:24, 40:80], blend(image, label, np.array(COLORS, np.uint8)))
        padded += (label[-1] == 255).all()
    assert padded  # some of them show the padding


def test_equal_seeds_draw_equal_sheets(config, tmp_path):
    def sheet(name, *opts):
        (path,) = draw_training_samples(config, list(opts), number=5, output=str(tmp_path / name))
        return path.read_bytes()

    first = sheet("a.png")
    assert sheet("b.png") == first
    assert sheet("c.png", "SEED", "6") != first
    assert sheet("d.png", "DATALOADER.NUM_WORKERS", "1") == first


def test_sheet_holds_every_sample(config, tmp_path):
    (path,) = draw_training_samples(config, [], number=5, output=str(tmp_path / "sheet.png"))
    sheet = pixels(path)
    for i, (_, image, label) in enumerate(training_samples(load_config(config), 5)):
        left, top = i % 4 * (80 + 8), i // 4 * (24 + 22) + 22
        assert np.array_equal(sheet[top : top + 24, left : left + 40], image)
        overlay = blend(image, label, np.array(COLORS, np.uint8))
        assert np.array_equal(sheet[top : top + 24, left + 40 : left + 80], overlay)
    legend = sheet[2 * (24 + 22) :].reshape(-1, 3)
    for color in COLORS:
        assert (legend == color).all(axis=1).sum() > 100


def test_images_in_bgr_are_shown_in_their_colours(config, tmp_path):
    rgb = list(training_samples(load_config(config), 3))
    cfg = load_config(config)
    cfg.INPUT.FORMAT = "BGR"
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_MEAN[::-1]
    for (_, image, _), (_, same, _) in zip(rgb, training_samples(cfg, 3), strict=True):
        assert np.array_equal(image, same)


def test_errors_name_what_is_wrong(config, tmp_path):
    out = str(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="--num is 0"):
        draw_training_samples(config, [], number=0, output=out)
    with pytest.raises(ConfigError, match="DATASETS.TRAIN names no data set"):
        draw_training_samples(config, ["DATASETS.TRAIN", "[]"], number=1, output=out)
    with pytest.raises(ConfigError, match=f'"toy" has {len(CLASSES)} classes'):
        draw_training_samples(config, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], number=1, output=out)
    (tmp_path / "toy" / "labels" / "002.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="002.png"):
        draw_training_samples(config, [], number=6, output=out)
    assert not (tmp_path / "x.png").exists()
