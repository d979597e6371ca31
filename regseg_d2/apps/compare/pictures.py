"""Predictions of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import MetadataCatalog

from regseg_d2.apps.predict import FilePredictor
from regseg_d2.config.files import load_config
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.loader import load_records
from regseg_d2.drawing.overlay import write_picture
from regseg_d2.drawing.pictures import class_colors, color_label

FINAL_WEIGHTS = "model_final.pth"


def predict(folder: Path, dataset_name: str) -> dict[str, np.ndarray]:
    """Predicts a data set with a run's final weights: class ids ``(H, W)`` by image file name."""
    cfg = load_config(str(folder / "config.yaml"), ["MODEL.WEIGHTS", str(folder / FINAL_WEIGHTS)])
    register_declared(cfg.DATASETS.DECLARED)
    predictor = FilePredictor(cfg)
    files = [record["file_name"] for record in load_records(dataset_name)]
    return {file: predictor(file) for file in files}


def compare_predictions(
    runs: Mapping[str, Path], dataset_name: str, path: Path, count: int = 8, scale: int = 2
) -> Path:
    """Writes one picture: a row an image, with image, label and the prediction of each run.

    Shows the images on which the runs differ most; returns the path.
    """
    predictions = {name: predict(folder, dataset_name) for name, folder in runs.items()}
    first, *others = predictions.values()
    disagreement = {file: sum((first[file] != other[file]).mean() for other in others) for file in first}
    files = sorted(disagreement, key=lambda file: (-disagreement[file], file))[:count]

    labels = {record["file_name"]: record["sem_seg_file_name"] for record in load_records(dataset_name)}
    reader = label_reader_for(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    colors = class_colors(metadata, len(metadata.stuff_classes))
    rows = []
    for file in files:
        maps = [reader(labels[file]), *(predictions[name][file] for name in runs)]
        rows.append(np.concatenate([read_image(file), *(color_label(m, colors) for m in maps)], axis=1))
    picture = np.concatenate(rows, axis=0).repeat(scale, 0).repeat(scale, 1)
    picture = np.concatenate([_titles(["image", "label", *runs], picture.shape[1]), picture], axis=0)
    write_picture(path, picture)
    return path


def _titles(names: list[str], width: int, height: int = 28) -> np.ndarray:
    bar = np.full((height, width, 3), 255, np.uint8)
    for index, name in enumerate(names):
        place = (index * width // len(names) + 6, height - 9)
        cv2.putText(bar, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return bar
