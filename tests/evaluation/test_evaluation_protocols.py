"""TEST.MODE and TEST.AUG in the evaluation of the trainer, which is that of --eval-only."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regseg_d2.engine.trainer import Trainer
from tests.evaluation.test_inference_predictor import (
    logits_of,
    make_image,
    make_model,
    slow_slide,
    softmax,
)
from tests.evaluation.test_metrics import reference
from tests.helpers import NUM_CLASSES, small_cfg

SIZES = [(40, 56), (33, 47)]


@pytest.fixture
def dataset(tmp_path):
    """Two images and labels as PNG files; the images as tensors."""
    rng = np.random.default_rng(0)
    records, images, labels = [], [], []
    for number, size in enumerate(SIZES):
        image = make_image(*size, seed=number)
        label = rng.integers(0, NUM_CLASSES, size).astype(np.uint8)
        label[:3] = 255
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        Image.fromarray(label).save(tmp_path / f"{number}_label.png")
        records.append(
            {
                "file_name": str(tmp_path / f"{number}.png"),
                "sem_seg_file_name": str(tmp_path / f"{number}_label.png"),
                "image_id": f"city/{number}",
            }
        )
        images.append(image)
        labels.append(label)
    DatasetCatalog.register("protocols", lambda: records)
    MetadataCatalog.get("protocols").set(stuff_classes=[str(i) for i in range(NUM_CLASSES)], ignore_label=255)
    return images, labels


def windows(model, image):
    return slow_slide(model, image, (24, 32), (16, 20))


def mirrored(model, image):
    views = [softmax(logits_of(model, image)), softmax(logits_of(model, image.flip(-1)))[:, :, ::-1]]
    return np.mean(views, axis=0)


@pytest.mark.parametrize(
    ("keys", "scores", "summary"),
    [
        ({}, logits_of, "whole image, one scale, no flip"),
        (
            {"MODE": "slide", "SLIDE__CROP_SIZE": [24, 32], "SLIDE__STRIDE": [16, 20]},
            windows,
            "windows of 24 x 32 every 16 x 20, logits averaged, one scale, no flip",
        ),
        (
            {"AUG__ENABLED": True, "AUG__SCALES": [1.0]},
            mirrored,
            "whole image, one scale, mirrored too, probabilities averaged",
        ),
    ],
)
def test_the_trainer_evaluates_as_the_config_says(dataset, tmp_path, keys, scores, summary):
    images, labels = dataset
    cfg = small_cfg(**{f"TEST__{key}": value for key, value in keys.items()})
    cfg.DATASETS.TEST = ("protocols",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.TEST.PREDICTIONS = ["png"]
    model = make_model()
    results = Trainer.test(cfg, model)["protocols"]["sem_seg"]

    predicted = [scores(model, image).argmax(axis=0) for image in images]
    flat = (np.concatenate([array.ravel() for array in arrays]) for arrays in (predicted, labels))
    expected = reference(*flat, NUM_CLASSES)
    assert results["mIoU"] == pytest.approx(expected["miou"], rel=1e-12)
    assert results["mIoU_predicted"] == pytest.approx(expected["miou_predicted"], rel=1e-12)
    folder = tmp_path / "run" / "evaluation"
    report = json.loads((folder / "protocols.json").read_text())
    assert report["protocol"] == summary
    assert report["inference"]["mode"] == cfg.TEST.MODE
    for number, label in enumerate(predicted):
        written = np.asarray(Image.open(folder / "protocols" / "png" / "city" / f"{number}.png"))
        assert np.array_equal(written, label)


def evaluate_in_a_process(folder):
    """Evaluates this process's share; runs in a process of its own."""
    records = json.loads((folder / "records.json").read_text())
    DatasetCatalog.register("shared", lambda: records)
    MetadataCatalog.get("shared").set(stuff_classes=[str(i) for i in range(NUM_CLASSES)], ignore_label=255)
    cfg = small_cfg(TEST__MODE="slide", TEST__SLIDE__CROP_SIZE=[24, 32], TEST__SLIDE__STRIDE=[16, 20])
    cfg.DATASETS.TEST = ("shared",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(folder / "run")
    cfg.TEST.PREDICTIONS = ["png"]
    return Trainer.test(cfg, make_model())["shared"]["sem_seg"]


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(dataset, tmp_path):
    from tests.distributed.launching import run_processes

    images, labels = dataset
    (tmp_path / "records.json").write_text(json.dumps(DatasetCatalog.get("protocols")))
    shares = run_processes(evaluate_in_a_process, 2, tmp_path, tmp_path)
    predicted = [torch.from_numpy(windows(make_model(), image)).argmax(0).numpy() for image in images]
    flat = (np.concatenate([array.ravel() for array in arrays]) for arrays in (predicted, labels))
    expected = reference(*flat, NUM_CLASSES)
    for scores in shares:
        assert scores["mIoU"] == pytest.approx(expected["miou"], rel=1e-12)
    written = tmp_path / "run" / "evaluation" / "shared" / "png" / "city"
    assert sorted(path.name for path in written.iterdir()) == ["0.png", "1.png"]
