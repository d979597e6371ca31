"""Detectron2's evaluator of semantic segmentation, in constant memory."""

from __future__ import annotations

import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.common.files import write_text
from regseg_d2.common.suggestions import registered
from regseg_d2.data.images import sample_pixels
from regseg_d2.data.labels import label_reader_for
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.drawing.sheets import SheetRow, prediction_sheet
from regseg_d2.evaluation.confusion import confusion_counts
from regseg_d2.evaluation.inference.argmax import argmax_classes
from regseg_d2.evaluation.inference.protocol import InferenceProtocol
from regseg_d2.evaluation.metrics import (
    METRIC,
    ImageMetric,
    SegmentationMetrics,
    compute_metrics,
    find_oddities,
    json_number,
)
from regseg_d2.evaluation.prediction_files import PredictionFiles, prediction_format

logger = logging.getLogger(__name__)


class StreamingSemSegEvaluator(SemSegEvaluator):
    """Adds every image to one confusion matrix, and keeps nothing else of it.

    Detectron2's evaluator keeps every prediction as run-length code and gathers them all; its label
    reader fails under NumPy 2, and its boundary IoU is wrong for more than two classes. This one reads
    labels with the reader that training uses, counts on the device of the predictions, and reports
    the mean IoU in both conventions, pixel counts, and what to be wary of. Every process gets the
    same results.

    Attributes:
        confusion: ``(K, K)`` int64 pixels of all processes, [true, predicted], once it was evaluated.
        panels: pictures of the first images ``(H, W, 3)`` uint8, RGB.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        label_reader: Callable[[str], np.ndarray] | None = None,
        provenance: Mapping[str, Any] | None = None,
        protocol: InferenceProtocol | None = None,
        predictions: Sequence[str] = (),
        metrics: Sequence[str] = (),
        num_images_shown: int = 0,
        image_format: str = "RGB",
    ) -> None:
        """Prepares the evaluation of one data set.

        Args:
            dataset_name: its name in Detectron2's catalogs.
            output_dir: results go to ``<output_dir>/evaluation/<dataset_name>.json``; None writes none.
            distributed: add the counts of all processes.
            label_reader: path to label (H, W); None takes the one that training uses.
            provenance: what the JSON shall say about the model; equal for equal models.
            protocol: how the predictions are made, for the JSON; None is the default one.
            predictions: what to write of each image below ``<output_dir>/evaluation/``: "png",
                "cityscapes", "ade20k", PNGs in a folder of that name below ``<dataset_name>/`` (see
                :mod:`~regseg_d2.evaluation.prediction_files`); "json", ``<dataset_name>_predictions.json``
                in COCO's format (large, and kept in memory).
            metrics: names in ``METRIC`` of more scores.
            num_images_shown: first images of the main process to draw into ``panels``: image, label and
                prediction, with the image's name and a legend.
            image_format: channel order of the input images, RGB or BGR, for ``panels``.

        Raises:
            ConfigError: there is no such metric or kind of predictions, or it does not fit the classes.
        """
        label_reader = label_reader or label_reader_for(dataset_name)
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=label_reader)
        self._compute_boundary_iou = False
        self._provenance = dict(provenance or {})
        self._protocol = protocol or InferenceProtocol()
        self._writes_json = "json" in predictions
        formats = [prediction_format(name, self._class_names) for name in predictions if name != "json"]
        self._files = [
            PredictionFiles(Path(output_dir, "evaluation", dataset_name, fmt.name), fmt, self._num_classes)
            for fmt in formats
            if output_dir
        ]
        self._metrics: dict[str, ImageMetric] = {
            name: registered(METRIC, name, "TEST.METRICS")(self._num_classes, self._ignore_label)
            for name in metrics
        }
        self._num_images_shown = num_images_shown if comm.is_main_process() else 0
        self._image_format = image_format
        self._colors = class_colors(MetadataCatalog.get(dataset_name), self._num_classes)
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was counted."""
        # (K, K) counts, [predicted, true]; made on the device of the first prediction.
        self._confusion: Tensor | None = None
        self._counts: dict[str, Tensor] = {}  # of each of the other metrics
        self._num_images = 0
        self._predictions: list[dict[str, Any]] = []
        self.panels: list[np.ndarray] = []
        self.confusion: np.ndarray | None = None

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Counts the pixels of a batch.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg_labels" ``(H, W)`` and "num_classes", or with "sem_seg", scores
                ``(K, H, W)``; at the size of the label.

        Raises:
            DatasetError: a label has another size than its image, or an unknown class.
            ConfigError: the model and the data set have different numbers of classes.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            predicted = self._labels_of(output)
            label = self.read_label(sample)
            self._count(predicted, label, self.input_file_to_gt_file[sample["file_name"]])
            self._num_images += 1
            self._write(predicted, sample)
            if len(self.panels) < self._num_images_shown:
                self.panels.append(self._draw(sample, label, predicted.cpu().numpy()))

    def read_label(self, sample: dict[str, Any]) -> np.ndarray:
        """Reads the label ``(H, W)`` of an image.

        Args:
            sample: a dict with "file_name".
        """
        return self.sem_seg_loading_fn(self.input_file_to_gt_file[sample["file_name"]])

    def _labels_of(self, output: dict[str, Any]) -> Tensor:
        scores = output.get("sem_seg")
        classes = output["num_classes"] if scores is None else scores.shape[0]
        if classes != self._num_classes:
            raise ConfigError(
                f"The model puts out {classes} classes and '{self._dataset_name}' has {self._num_classes}: "
                f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES {self._num_classes}."
            )
        return output["sem_seg_labels"] if scores is None else argmax_classes(scores)

    def _count(self, predicted: Tensor, label: np.ndarray, label_file: str) -> None:
        if label.shape != tuple(predicted.shape):
            raise DatasetError(
                f"'{label_file}' has {label.shape[0]} x {label.shape[1]} pixels (height x width), and the "
                f"prediction for its image {predicted.shape[0]} x {predicted.shape[1]}: label and image must "
                "have the same size."
            )
        classes, ignore = self._num_classes, self._ignore_label
        true = torch.from_numpy(np.ascontiguousarray(label)).to(predicted.device)
        counts = confusion_counts(predicted, true, classes, ignore)
        if counts is None:
            unknown = label[(label != ignore) & ((label < 0) | (label >= classes))]
            raise DatasetError(
                f"'{label_file}' has the class {int(unknown[0])} ({unknown.size} pixels in all are outside "
                f"0 to {classes - 1} and not {ignore}): correct the label_map."
            )
        self._confusion = counts if self._confusion is None else self._confusion + counts
        for name, metric in self._metrics.items():
            counts = metric.count(predicted, true)
            self._counts[name] = self._counts[name] + counts if name in self._counts else counts

    def _draw(self, sample: dict[str, Any], label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        image = sample_pixels(sample, self._image_format)
        row = SheetRow(str(sample.get("image_id", sample["file_name"])), image, [label, predicted])
        titles = ("image", "label", "prediction")
        return prediction_sheet([row], titles, self._class_names, self._colors)

    def _write(self, predicted: Tensor, sample: dict[str, Any]) -> None:
        if not self._files and not self._writes_json:
            return
        label = predicted.cpu().numpy()
        for files in self._files:
            files.write(label, sample["file_name"], str(sample.get("image_id", "")))
        if self._writes_json:
            self._predictions.extend(self.encode_json_sem_seg(label.astype(np.int64), sample["file_name"]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Adds up the counts of all processes, prints a table and writes the JSON.

        Returns:
            ``{"sem_seg": {metric: percent}}`` on every process.
        """
        confusion, others, num_images = self._gather()
        self.confusion = confusion.T
        metrics = compute_metrics(confusion)
        more: dict[str, float] = {}
        for metric, counts in zip(self._metrics.values(), others, strict=True):
            more |= metric.scores(counts, self._class_names)
        oddities = find_oddities(metrics, self._class_names)
        if comm.is_main_process():
            logger.info(
                "%s, %d images, %s:\n%s",
                self._dataset_name,
                num_images,
                self._protocol.summary(),
                self._table(metrics, more),
            )
            for oddity in oddities:
                logger.warning("%s: %s", self._dataset_name, oddity)
            if self._output_dir:
                folder = Path(self._output_dir) / "evaluation"
                report = self._report(metrics, more, num_images, oddities)
                text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False)
                write_text(folder / f"{self._dataset_name}.json", text + "\n")
                if self._writes_json:
                    write_text(
                        folder / f"{self._dataset_name}_predictions.json", json.dumps(self._predictions)
                    )
        return OrderedDict({"sem_seg": metrics.as_detectron2(self._class_names) | more})

    def _gather(self) -> tuple[np.ndarray, list[np.ndarray], int]:
        """The confusion matrix, the counts of each of the other metrics, and the number of images."""
        classes = self._num_classes
        confusion = self._confusion
        if confusion is None:  # a process without an image
            confusion = torch.zeros(classes, classes, dtype=torch.int64)
        none = confusion.new_zeros
        others = [self._counts.get(name, none(metric.size)) for name, metric in self._metrics.items()]
        counts = torch.cat([confusion.flatten(), *others, confusion.new_tensor([self._num_images])])
        if self._distributed and comm.get_world_size() > 1:
            if dist.get_backend() == "nccl":
                counts = counts.cuda()
            dist.all_reduce(counts)
            if self._writes_json:
                self._predictions = list(itertools.chain(*comm.all_gather(self._predictions)))
        sizes = [classes**2, *(metric.size for metric in self._metrics.values())]
        confusions, *sums, images = np.split(counts.cpu().numpy(), np.cumsum(sizes))
        return confusions.reshape(classes, classes), sums, int(images[0])

    def _table(self, metrics: SegmentationMetrics, more: Mapping[str, float]) -> str:
        rows = [
            (name, iou, acc, int(pixels), int(predicted))
            for name, iou, acc, pixels, predicted in zip(
                self._class_names,
                metrics.iou,
                metrics.acc,
                metrics.pixels,
                metrics.predicted_pixels,
                strict=True,
            )
        ]
        classes = tabulate(
            rows,
            headers=("class", "IoU", "accuracy", "pixels", "predicted pixels"),
            floatfmt=".2f",
            tablefmt="simple",
        )
        means = {**metrics.means(), **more}
        return f"{classes}\n" + "  ".join(f"{name} {score:.4f}" for name, score in means.items())

    def _report(
        self, metrics: SegmentationMetrics, more: Mapping[str, float], num_images: int, oddities: list[str]
    ) -> dict[str, Any]:
        """Returns what the JSON holds. Nothing in it depends on when or where it was written."""
        return {
            "dataset": self._dataset_name,
            "protocol": self._protocol.summary(),
            "inference": self._protocol.describe(),
            "num_images": num_images,
            "ignore_label": self._ignore_label,
            "metrics": {name: json_number(score) for name, score in {**metrics.means(), **more}.items()},
            "classes": [
                {
                    "name": name,
                    "IoU": json_number(metrics.iou[i]),
                    "ACC": json_number(metrics.acc[i]),
                    "pixels": int(metrics.pixels[i]),
                    "predicted_pixels": int(metrics.predicted_pixels[i]),
                }
                for i, name in enumerate(self._class_names)
            ],
            "warnings": oddities,
            "model": self._provenance,
        }
