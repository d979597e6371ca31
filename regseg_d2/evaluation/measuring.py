"""All measures of a trained model: features, calibration, rare classes, corrupted images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.loader import build_test_loader
from regseg_d2.data.mapper import TestMapper
from regseg_d2.data.records import load_records
from regseg_d2.evaluation.confusion import confusion_counts
from regseg_d2.evaluation.corruptions import SEVERITIES, corrupt
from regseg_d2.evaluation.inference import Predictor, build_predictor
from regseg_d2.evaluation.inference.network import padded_size
from regseg_d2.evaluation.measures import (
    Calibration,
    ClassCenters,
    NearestCenter,
    mean_over,
    tail_classes,
)
from regseg_d2.evaluation.metrics import compute_metrics, json_number
from regseg_d2.regularizers.recorder import TapRecorder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class LabelledImages:
    """A data set's images as the network is tested with them, and their labels.

    With a ``limit`` so many images at most, from the first on.

    Raises:
        ConfigError: the data set has no label for an image.
    """

    def __init__(self, cfg: CfgNode, dataset: str, limit: int | None = None) -> None:
        self._records = {record["file_name"]: record for record in load_records(dataset)}
        if not all(record.get("sem_seg_file_name") for record in self._records.values()):
            raise ConfigError(f"'{dataset}' has images without a label: measures need one for each.")
        self._read = label_reader_for(dataset)
        self._loader = build_test_loader(cfg, dataset)
        self._mapper = TestMapper(cfg)
        self._limit = limit
        self.ignore_value = MetadataCatalog.get(dataset).ignore_label
        self.classes = list(MetadataCatalog.get(dataset).stuff_classes)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yields samples of :class:`~regseg_d2.data.mapper.TestMapper` and labels ``(H, W)``, void -1."""
        for (sample,) in islice(self._loader, self._limit):
            yield sample, self._label(sample["file_name"])

    @property
    def files(self) -> list[str]:
        """File names of the images, in their order."""
        return list(self._records)[: self._limit]

    def of(self, files: Iterable[str]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yields some images and their labels, in this order."""
        return ((self._mapper(self._records[file]), self._label(file)) for file in files)

    def _label(self, file: str) -> Tensor:
        label = torch.from_numpy(
            np.ascontiguousarray(self._read(self._records[file]["sem_seg_file_name"]))
        ).long()
        return torch.where(label == self.ignore_value, -1, label)


class FeatureReader:
    """Reads a tap of a model in evaluation."""

    def __init__(self, model: nn.Module, tap: str) -> None:
        self._model: Any = model
        self._tap = tap
        self._recorder = TapRecorder(model, [tap])

    def __call__(self, sample: dict[str, Any], label: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the feature ``(C, h, w)`` of an image, and the labels ``(h, w)`` at its cells' centers.

        Args:
            sample: of the test mapper.
            label: ``(H, W)``, void -1.
        """
        image = sample["image"]
        feature = self.of(image)
        return feature, self._at_cells(label.to(feature.device), image.shape[-2:], feature.shape[-2:])

    def during(self, predict: Callable[[], T]) -> tuple[Tensor, T]:
        """Returns the feature ``(C, h, w)`` of the one forward in ``predict()``, and what that returns."""
        with self._recorder.record(self._model) as taps:
            result = predict()
        return taps[self._tap][0].float(), result

    def of(self, image: Tensor) -> Tensor:
        """Returns the feature ``(C, h, w)`` of an image of the test mapper."""
        return self.during(lambda: self._run(image))[0]

    def _run(self, image: Tensor) -> None:
        if getattr(self._model, "gives_feature_logits", False):
            self._model.feature_logits(image.unsqueeze(0))
        else:
            self._model([{"image": image}])

    def _at_cells(self, label: Tensor, image: Sequence[int], cells: Sequence[int]) -> Tensor:
        padded = padded_size(self._model, image[0], image[1])
        height, width = (whole - side for whole, side in zip(padded, image, strict=True))
        # In float64 every label is exact.
        label = F.interpolate(label[None, None].double(), tuple(image), mode="nearest-exact")
        label = F.pad(label, (0, width, 0, height), value=-1.0)
        return F.interpolate(label, tuple(cells), mode="nearest-exact")[0, 0].long()


def measure(
    cfg: CfgNode,
    model: nn.Module,
    datasets: Sequence[str],
    *,
    tap: str,
    train_images: int | None = None,
    corruptions: Sequence[str] = (),
) -> dict[str, dict[str, float | None]]:
    """Measures a model on data sets.

    Class centers for the nearest-center accuracy, and what classes are rare, come from ``DATASETS.TRAIN``.

    Args:
        cfg: the config of the run; its test protocol makes the predictions.
        model: the trained model, in evaluation mode.
        datasets: names of data sets with the classes of the training set.
        tap: the feature that distances are measured in.
        train_images: images of each training set that centers are made from, at most; None takes all.
        corruptions: names of :data:`~regseg_d2.evaluation.corruptions.KINDS`; each at each severity.

    Returns:
        ``{data set: {measure: number}}``; None for a number that is not defined.

    Raises:
        ConfigError: a tap, data set or corruption that does not exist, or other classes than the training
            set's.
    """
    reader = FeatureReader(model, tap)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    with inference_context(model), torch.no_grad():
        train, pixels = _training_centers(cfg, reader, num_classes, train_images)
        tail = tail_classes(pixels.tolist())
        results = {}
        for dataset in datasets:
            images = LabelledImages(cfg, dataset)
            if len(images.classes) != num_classes:
                raise ConfigError(
                    f"'{dataset}' has {len(images.classes)} classes and the model {num_classes}: "
                    "measure it on data sets with the classes that it was trained for."
                )
            logger.info("Measuring on %s", dataset)
            values = _measure_one(images, reader, build_predictor(cfg, model), train, tail)
            if corruptions:
                values |= _corrupted(images, build_predictor(cfg, model), corruptions, num_classes)
            results[dataset] = {name: json_number(value) for name, value in values.items()}
    return results


def _training_centers(
    cfg: CfgNode, reader: FeatureReader, num_classes: int, limit: int | None
) -> tuple[ClassCenters, np.ndarray]:
    centers: ClassCenters | None = None
    pixels = np.zeros(num_classes)
    for dataset in cfg.DATASETS.TRAIN:
        for sample, label in LabelledImages(cfg, dataset, limit):
            feature, cells = reader(sample, label)
            if centers is None:
                centers = ClassCenters(num_classes, feature.shape[0], feature.device)
            centers.add(feature, cells)
            pixels += np.bincount(label[label >= 0].numpy(), minlength=num_classes)[:num_classes]
    if centers is None:
        raise ConfigError("DATASETS.TRAIN has no image: class centers are measured on the training set.")
    return centers, pixels


def _measure_one(
    images: LabelledImages,
    reader: FeatureReader,
    predictor: Predictor,
    train: ClassCenters,
    tail: Sequence[int],
) -> dict[str, float]:
    centers = ClassCenters(train.num_classes, train.sums.shape[1], train.sums.device)
    nearest = NearestCenter(train.centers, train.present)
    calibration = Calibration()
    confusion = np.zeros((train.num_classes,) * 2, dtype=np.int64)
    for sample, label in images:
        feature, cells = reader(sample, label)
        centers.add(feature, cells)
        nearest.add(feature, cells)
        probabilities = predictor.probabilities([sample])[0]["sem_seg"]
        label = label.to(probabilities.device)
        calibration.add(probabilities, label)
        confusion += _confusion(probabilities.argmax(dim=0), label, train.num_classes)
    metrics = compute_metrics(confusion)
    return {
        **centers.distances(),
        "nearest_center_accuracy": nearest.accuracy(),
        "calibration_error": calibration.error(),
        "mIoU": metrics.miou,
        "mIoU_tail": mean_over(metrics.iou.tolist(), tail),
    }


def _corrupted(
    images: LabelledImages, predictor: Predictor, kinds: Sequence[str], num_classes: int
) -> dict[str, float]:
    """Means of IoU under each corruption (mean over severities), and their mean."""
    confusions = {
        (kind, severity): np.zeros((num_classes,) * 2, np.int64) for kind in kinds for severity in SEVERITIES
    }
    for sample, label in images:
        for (kind, severity), confusion in confusions.items():
            image = corrupt(sample["image"].cpu(), kind, severity, sample["file_name"].rpartition("/")[2])
            predicted = predictor([{**sample, "image": image}])[0]["sem_seg_labels"]
            confusion += _confusion(predicted, label.to(predicted.device), num_classes)
    scores = {key: compute_metrics(confusion).miou for key, confusion in confusions.items()}
    means = {
        f"mIoU_{kind}": float(np.mean([scores[kind, severity] for severity in SEVERITIES])) for kind in kinds
    }
    return {**means, "mIoU_corrupted": float(np.mean(list(means.values())))}


def _confusion(predicted: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    """Counts ``(K, K)`` of one image whose void pixels are -1."""
    counts = confusion_counts(predicted, torch.where(label < 0, num_classes, label), num_classes, num_classes)
    if counts is None:
        raise DatasetError(
            f"A label has classes from {int(label.min())} to {int(label.max())}; expected 0 to "
            f"{num_classes - 1} or void: correct the label_map."
        )
    return counts.cpu().numpy()
