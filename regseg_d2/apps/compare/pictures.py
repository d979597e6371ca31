"""Predictions of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from regseg_d2.apps.compare.groups import Group
from regseg_d2.apps.compare.runs import CompareError, names_of_runs
from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.data.loader import load_records
from regseg_d2.drawing.overlay import write_picture
from regseg_d2.drawing.sheets import SheetRow, prediction_sheet
from regseg_d2.engine.trained_model import FINAL_WEIGHTS, config_of_run
from regseg_d2.prediction import ClassList, Predictor


def load_predictor(folder: Path, dataset_name: str) -> Predictor:
    """Builds the predictor of a finished run, with its final weights and its test protocol.

    Raises:
        CompareError: the run has no final weights, or other classes than the data set.
        UserError: what of it cannot be read, or no data set has this name.
    """
    if not (folder / FINAL_WEIGHTS).is_file():
        raise CompareError(
            f"'{folder}' has no {FINAL_WEIGHTS} to predict with: let the run finish, or leave it away."
        )
    cfg = config_of_run(folder, FINAL_WEIGHTS)
    register_declared(cfg.DATASETS.DECLARED)
    load_records(dataset_name)
    classes, wanted = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, label_reader_for(dataset_name).num_classes
    if classes != wanted:
        raise CompareError(
            f"'{folder}' was trained for {classes} classes and '{dataset_name}' has {wanted}: give --dataset "
            "a data set with the classes of all runs."
        )
    return Predictor.from_config(cfg, classes=ClassList.of_dataset(dataset_name))


def picture_of_groups(groups: Sequence[Group], dataset_name: str | None, path: Path) -> None:
    """Writes one picture of all runs of a comparison; see :func:`compare_predictions`.

    Args:
        groups: of the comparison.
        dataset_name: what to predict; None takes the first data set that all runs were evaluated on.
        path: the PNG file.

    Raises:
        CompareError: there is no such data set.
        UserError: see :func:`compare_predictions`.
    """
    if dataset_name is None:
        shared = [name for name in groups[0].datasets if all(name in group.datasets for group in groups)]
        if not shared:
            raise CompareError(
                "There is no data set that all runs were evaluated on: give that of the pictures, --dataset."
            )
        dataset_name = shared[0]
    folders = [run.path for group in groups for run in group.runs]
    compare_predictions(dict(zip(names_of_runs(folders), folders, strict=True)), dataset_name, path)


def compare_predictions(runs: Mapping[str, Path], dataset_name: str, path: Path, count: int = 8) -> None:
    """Writes one picture: a row an image, with image, label and the prediction of each run.

    It shows the images on which runs differ most from the first one; of one run, those with the largest share
    of wrong pixels. All runs are in memory at once, and the predictions of ``count`` images.

    Args:
        runs: folders by the name to show.
        dataset_name: what to predict.
        path: the PNG file.
        count: images to show.

    Raises:
        UserError: a run, image or label cannot be used, or the file cannot be written.
    """
    predictors = [load_predictor(folder, dataset_name) for folder in runs.values()]
    read_label = label_reader_for(dataset_name)
    shown: list[tuple[float, int, SheetRow]] = []
    images = load_records(dataset_name)
    classes = ClassList.of_dataset(dataset_name)
    console = Console(stderr=True)  # the tables go to the output
    for number, record in enumerate(track(images, "predicting", transient=True, console=console)):
        results = [predict(record["file_name"]) for predict in predictors]
        predictions = [result.labels for result in results]
        label = read_label(record["sem_seg_file_name"])
        if label.shape != predictions[0].shape:
            raise DatasetError(
                f"'{record['sem_seg_file_name']}' has {label.shape[0]} x {label.shape[1]} pixels (height x "
                f"width) and its image {predictions[0].shape[0]} x {predictions[0].shape[1]}: they must have "
                "the same size."
            )
        rank = (-_difference(predictions, label, read_label), number)
        if len(shown) < count or rank < shown[-1][:2]:
            row = SheetRow(record["image_id"], results[0].image, [label, *predictions])
            shown = sorted([*shown, (*rank, row)], key=lambda each: each[:2])[:count]
    titles = ["image", "label", *runs]
    sheet = prediction_sheet([row for *_, row in shown], titles, classes.names, classes.colors)
    write_picture(path, sheet)


def _difference(predictions: list[np.ndarray], label: np.ndarray, reader: LabelReader) -> float:
    """Share of pixels that others predict otherwise than the first, summed over them; of one, wrong ones."""
    first, *others = predictions
    if others:
        return float(sum((first != other).mean() for other in others))
    valid = label != reader.ignore_value
    return float((first != label)[valid].mean()) if valid.any() else 0.0
