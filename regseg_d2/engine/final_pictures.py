"""What TensorBoard shows of a trained network: its confusion matrix, and pixels in feature space."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context, inference_on_dataset
from detectron2.utils import comm

from regseg_d2.common.errors import ConfigError, check_key, printable
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.engine.devices import unwrap_model
from regseg_d2.engine.interruption import EvaluationInterrupted, StoppableEvaluation
from regseg_d2.evaluation.looking.pixels import (
    FeaturePredictor,
    PixelSampler,
    SampledPixels,
    UnreadableFeature,
)
from regseg_d2.segmentor.places import classified_feature_tap

logger = logging.getLogger(__name__)

FOLDER = "projector"
COLUMNS = ("class", "predicted", "right", "image", "row", "column")
_DPI = 150
_DIGITS = 5  # of the largest feature


class FinalPictures(HookBase):
    """After the last evaluation, gives TensorBoard the confusion matrix and sampled pixels in feature space.

    Both are of the first test set. The matrix is that of the evaluation. The pixels need another pass over
    the images, whole and at one scale; each process samples those of its own images.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Checks the keys.

        Raises:
            ConfigError: a key cannot be used.
        """
        shown, pixels = cfg.TEST.NUM_IMAGES_SHOWN, cfg.TEST.NUM_PIXELS_SHOWN
        check_key("TEST.NUM_IMAGES_SHOWN", shown, shown >= 0, "0 or more")
        check_key("TEST.NUM_PIXELS_SHOWN", pixels, pixels >= 0, "0 or more")
        self._cfg = cfg
        self._dataset = cfg.DATASETS.TEST[0]

    def after_train(self) -> None:
        """Makes the pictures, if training came to its end."""
        trainer = self.trainer
        if not trainer.finished or trainer.interrupted or trainer.completed_steps == 0:
            return
        confusion = trainer.confusions.get(self._dataset)
        if self._cfg.TEST.NUM_IMAGES_SHOWN and confusion is not None and comm.is_main_process():
            names = list(MetadataCatalog.get(self._dataset).stuff_classes)
            trainer.storage.put_image(f"{self._dataset}/confusion", draw_confusion(confusion, names))
        if self._cfg.TEST.NUM_PIXELS_SHOWN:
            self._show_pixels()

    def _show_pixels(self) -> None:
        trainer = self.trainer
        model = unwrap_model(trainer.model)
        try:
            predictor = FeaturePredictor(model, classified_feature_tap(model))
        except ConfigError as error:
            self._say_why_not(error)
            return
        try:
            pixels = self._sample_pixels(predictor)
        except EvaluationInterrupted:
            trainer.interrupted = True
            return
        except UnreadableFeature as error:
            self._say_why_not(error)
            return
        if pixels is not None and not np.isfinite(pixels.features).all():
            self._say_why_not("features are not finite.")
        elif pixels is not None:
            names = list(MetadataCatalog.get(self._dataset).stuff_classes)
            folder = Path(self._cfg.OUTPUT_DIR) / FOLDER
            write_projector(folder, pixels, names, trainer.completed_steps)
            logger.info("Wrote %d pixels for TensorBoard's projector to '%s'.", len(pixels.label), folder)

    @staticmethod
    def _say_why_not(reason: object) -> None:
        logger.warning(
            "TensorBoard gets no pixels in feature space: %s TEST.NUM_PIXELS_SHOWN 0 asks for none.", reason
        )

    def _sample_pixels(self, predictor: FeaturePredictor) -> SampledPixels | None:
        trainer, cfg = self.trainer, self._cfg
        evaluator = trainer.build_evaluator(cfg, self._dataset, {})
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        sampler = PixelSampler(
            evaluator.read_label,
            class_colors(MetadataCatalog.get(self._dataset), num_classes),
            pixels_per_class=cfg.TEST.NUM_PIXELS_SHOWN,
            seed=cfg.SEED,
            image_format=cfg.INPUT.FORMAT,
        )
        loader = trainer.build_test_loader(cfg, self._dataset)
        stoppable = StoppableEvaluation(sampler, loader, lambda: trainer.signals.received is not None)
        logger.info("Sampling pixels of '%s' for TensorBoard's projector.", self._dataset)
        with inference_context(unwrap_model(trainer.model)):
            # Of a process without pixels it is an empty dict.
            return inference_on_dataset(predictor, stoppable.loader, stoppable) or None


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix.

    Args:
        confusion: ``(K, K)`` pixels, [true, predicted].
        names: K class names.

    Returns:
        ``(3, H, W)`` uint8, RGB.
    """
    # Not above: Matplotlib takes half a second to import, of every process.
    from regseg_d2.drawing.figures.matrix import confusion_matrices
    from regseg_d2.drawing.figures.style import figure_bytes

    figure = confusion_matrices({"last evaluation": confusion}, names)
    encoded = np.frombuffer(figure_bytes(figure, "png", _DPI), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB).transpose(2, 0, 1)


def write_projector(folder: Path, pixels: SampledPixels, names: Sequence[str], step: int) -> None:
    """Writes the files of TensorBoard's embedding projector; they replace what is in the folder.

    Features are rounded to five digits of the largest one.

    Args:
        folder: becomes a run of TensorBoard.
        pixels: at least one.
        names: K class names.
        step: steps that the network was trained for.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    rows = [
        [names[label], names[predicted], "yes" if label == predicted else "no", image, int(y), int(x)]
        for label, predicted, image, y, x in zip(
            pixels.label, pixels.predicted, pixels.image, pixels.y, pixels.x, strict=True
        )
    ]
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with SummaryWriter(str(unfinished)) as writer:
        writer.add_embedding(
            _rounded(pixels.features),
            metadata=[[printable(str(cell), None) for cell in row] for row in rows],
            metadata_header=list(COLUMNS),
            # torch multiplies by 255 and drops what is behind the point.
            label_img=torch.from_numpy((pixels.thumbnails.transpose(0, 3, 1, 2) + 0.5) / 255),
            global_step=step,
            tag="pixels",
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


def _rounded(features: np.ndarray) -> np.ndarray:
    """Features as text files hold them: every further digit is a byte of each number."""
    values: np.ndarray = features.astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    return values.round(_DIGITS - math.ceil(math.log10(largest))) if largest else values
