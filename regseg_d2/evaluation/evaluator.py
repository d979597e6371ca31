"""Detectron2's evaluator of semantic segmentation, in constant memory."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
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

from regseg_d2.engine.files import write_text
from regseg_d2.errors import ConfigError, DatasetError
from regseg_d2.evaluation.metrics import SegmentationMetrics, compute_metrics, find_oddities
from regseg_d2.evaluation.visualize import class_colors, side_by_side

logger = logging.getLogger(__name__)

PROTOCOL = "whole image, one scale, no flip"


class StreamingSemSegEvaluator(SemSegEvaluator):
    """Adds every image to one confusion matrix, and keeps nothing else of it.

    Detectron2's evaluator keeps every prediction as run-length code and gathers them all; its label
    reader fails under NumPy 2, and its boundary IoU is wrong for more than two classes. This one reads
    labels with the reader that training uses, counts on the device of the predictions, and reports
    the mean IoU in both conventions, pixel counts, and what to be wary of. Every process gets the
    same results.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        label_reader: Callable[[str], np.ndarray] | None = None,
        provenance: Mapping[str, Any] | None = None,
        write_predictions: bool = False,
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
            write_predictions: also write ``<dataset_name>_predictions.json`` in COCO's format (large).
            num_images_shown: first images of the main process to keep in ``panels``.
            image_format: channel order of the input images, RGB or BGR, for ``panels``.
        """
        if label_reader is None:
            from regseg_d2.data.labels import label_reader_for

            label_reader = label_reader_for(dataset_name)
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=label_reader)
        self._compute_boundary_iou = False
        self._provenance = dict(provenance or {})
        self._write_predictions = write_predictions
        self._num_images_shown = num_images_shown if comm.is_main_process() else 0
        self._image_format = image_format
        self._colors = class_colors(MetadataCatalog.get(dataset_name), self._num_classes)
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was counted."""
        # (K, K) counts, [predicted, true]; made on the device of the first prediction.
        self._confusion: Tensor | None = None
        self._num_images = 0
        self._predictions: list[dict[str, Any]] = []
        self.panels: list[np.ndarray] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Tensor]]) -> None:
        """Counts the pixels of a batch.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", the logits (K, H, W) at the size of the label.

        Raises:
            DatasetError: a label has another size than its image, or an unknown class.
            ConfigError: the model and the data set have different numbers of classes.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            logits = output["sem_seg"]
            if logits.shape[0] != self._num_classes:
                raise ConfigError(
                    f"The model puts out {logits.shape[0]} classes and '{self._dataset_name}' has "
                    f"{self._num_classes}: set MODEL.SEM_SEG_HEAD.NUM_CLASSES {self._num_classes}."
                )
            predicted = logits.argmax(dim=0)
            label_file = self.input_file_to_gt_file[sample["file_name"]]
            label = self.sem_seg_loading_fn(label_file)
            self._check_label(label, tuple(predicted.shape), label_file)
            self._count(predicted, torch.from_numpy(np.ascontiguousarray(label)).to(predicted.device))
            self._num_images += 1
            if self._write_predictions:
                # cpu().numpy() is int64, as Detectron2's encoder expects.
                self._predictions.extend(
                    self.encode_json_sem_seg(predicted.cpu().numpy(), sample["file_name"])
                )
            if len(self.panels) < self._num_images_shown:
                image = sample["image"].permute(1, 2, 0).cpu().numpy()
                image = image if self._image_format == "RGB" else image[..., ::-1]
                self.panels.append(side_by_side(image, label, predicted.cpu().numpy(), self._colors))

    def _check_label(self, label: np.ndarray, size: tuple[int, ...], label_file: str) -> None:
        if label.shape != size:
            raise DatasetError(
                f"'{label_file}' has {label.shape[0]} x {label.shape[1]} pixels (height x width), and the "
                f"prediction for its image {size[0]} x {size[1]}: label and image must have the same size."
            )
        unknown = (label != self._ignore_label) & ((label < 0) | (label >= self._num_classes))
        if unknown.any():
            raise DatasetError(
                f"'{label_file}' has the class {int(label[unknown][0])} ({int(unknown.sum())} pixels in all "
                "are "
                f"outside 0 to {self._num_classes - 1} and not {self._ignore_label}): correct the label_map."
            )

    def _count(self, predicted: Tensor, label: Tensor) -> None:
        classes = self._num_classes
        if self._confusion is None:
            self._confusion = torch.zeros(classes, classes, dtype=torch.int64, device=predicted.device)
        # Void pixels are counted in a row of their own, which is cut off.
        column = torch.where(label == self._ignore_label, classes, label.long())
        index = predicted.long() * (classes + 1) + column
        counts = torch.bincount(index.flatten(), minlength=classes * (classes + 1))
        self._confusion += counts.view(classes, classes + 1)[:, :classes]

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Adds up the counts of all processes, prints a table and writes the JSON.

        Returns:
            ``{"sem_seg": {metric: percent}}`` on every process.
        """
        confusion, num_images = self._gather()
        metrics = compute_metrics(confusion)
        oddities = find_oddities(metrics, self._class_names)
        if comm.is_main_process():
            logger.info("%s, %d images:\n%s", self._dataset_name, num_images, self._table(metrics))
            for oddity in oddities:
                logger.warning("%s: %s", self._dataset_name, oddity)
            if self._output_dir:
                folder = Path(self._output_dir) / "evaluation"
                report = self._report(metrics, num_images, oddities)
                text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False)
                write_text(folder / f"{self._dataset_name}.json", text + "\n")
                if self._write_predictions:
                    write_text(
                        folder / f"{self._dataset_name}_predictions.json", json.dumps(self._predictions)
                    )
        return OrderedDict({"sem_seg": metrics.as_detectron2(self._class_names)})

    def _gather(self) -> tuple[np.ndarray, int]:
        classes = self._num_classes
        confusion = self._confusion
        if confusion is None:  # a process without an image
            confusion = torch.zeros(classes, classes, dtype=torch.int64)
        counts = torch.cat([confusion.flatten(), confusion.new_tensor([self._num_images])])
        if self._distributed and comm.get_world_size() > 1:
            if dist.get_backend() == "nccl":
                counts = counts.cuda()
            dist.all_reduce(counts)
            if self._write_predictions:
                self._predictions = list(itertools.chain(*comm.all_gather(self._predictions)))
        *_, num_images = counts.tolist()
        return counts[:-1].view(classes, classes).cpu().numpy(), num_images

    def _table(self, metrics: SegmentationMetrics) -> str:
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
        return (
            f"{classes}\nmIoU {metrics.miou:.4f}  mIoU_predicted {metrics.miou_predicted:.4f}  "
            f"fwIoU {metrics.fwiou:.4f}  mACC {metrics.macc:.4f}  pACC {metrics.pacc:.4f}"
        )

    def _report(self, metrics: SegmentationMetrics, num_images: int, oddities: list[str]) -> dict[str, Any]:
        """Returns what the JSON holds. Nothing in it depends on when or where it was written."""
        return {
            "dataset": self._dataset_name,
            "protocol": PROTOCOL,
            "num_images": num_images,
            "ignore_label": self._ignore_label,
            "metrics": {
                "mIoU": _number(metrics.miou),
                "mIoU_predicted": _number(metrics.miou_predicted),
                "fwIoU": _number(metrics.fwiou),
                "mACC": _number(metrics.macc),
                "pACC": _number(metrics.pacc),
            },
            "classes": [
                {
                    "name": name,
                    "IoU": _number(metrics.iou[i]),
                    "ACC": _number(metrics.acc[i]),
                    "pixels": int(metrics.pixels[i]),
                    "predicted_pixels": int(metrics.predicted_pixels[i]),
                }
                for i, name in enumerate(self._class_names)
            ],
            "warnings": oddities,
            "model": self._provenance,
        }


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else float(value)
