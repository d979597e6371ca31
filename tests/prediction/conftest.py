"""A run that was trained and evaluated, for all tests of the predictor and of bundles."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regseg_d2.config.files import load_config
from regseg_d2.engine.main import train
from tests.data.data_helpers import write_toy
from tests.data.declarations import declare, declared

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD:
    NUM_CLASSES: 3
    IN_FEATURES: [res4]
    CONTEXT: FCN
    CONTEXT_CHANNELS: 16
    CONVS_DIM: 16
    PROJECTION: LinearConvBlock
    PROJECTION_KERNEL_SIZE: 1
    AUX: {IN_FEATURE: res3, CHANNELS: 8}
  REGULARIZERS: {NAMES: [CAR, ContrastSeg]}
DATASETS: {DECLARED: [farm.yaml], TRAIN: [farm_train], TEST: [farm_val], CHECK_SAMPLES: 0}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {CROP: {SIZE: [32, 32]}}
SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2, BASE_LR: 0.0001}
TEST: {PREDICTIONS: [png]}
SEED: 1
"""


@dataclass(frozen=True)
class TrainedRun:
    """Its folder, the images that it was evaluated on, and the labels that the evaluation wrote."""

    folder: Path
    images: list[Path]

    def labels(self, image):
        with Image.open(self.folder / "evaluation" / "farm_val" / "png" / f"{image.stem}.png") as file:
            return np.array(file)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("farm")
    write_toy(folder / "data", count=3, size=(40, 56), seed=4)
    declare(folder)
    (folder / "train_farm.yaml").write_text(CONFIG)
    cfg = load_config(str(folder / "train_farm.yaml"), ["OUTPUT_DIR", str(folder / "run")])
    with declared(*cfg.DATASETS.DECLARED):
        train(cfg)
    run = TrainedRun(folder / "run", sorted((folder / "data" / "images").glob("*.png")))
    # The labels that are compared must be able to differ.
    assert len(np.unique([run.labels(image) for image in run.images])) > 1
    return run
