"""Pixels of each class with their features, sampled by the processes of a run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from regseg_d2.common.errors import UserError
from regseg_d2.data.images import sample_pixels
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor
from regseg_d2.evaluation.inference.network import cell_size
from regseg_d2.evaluation.looking.sampling import ClassSample, even_subset, pixel_keys
from regseg_d2.evaluation.looking.views import cell_at
from regseg_d2.evaluation.measuring import FeatureReader
from regseg_d2.regularizers.recorder import TapError

# Pixels: side of a thumbnail, and width of its frame. It shows this share of the image's shorter side.
THUMBNAIL, FRAME = 32, 2
_SHOWN_SHARE = 0.25
_KEY = "key"


@dataclass(frozen=True, eq=False)
class SampledPixels:
    """Pixels sorted by class, and within a class at random.

    Attributes:
        image: ``(P,)`` names of their images.
        y: ``(P,)`` rows in the label.
        x: ``(P,)`` columns.
        label: ``(P,)`` classes.
        predicted: ``(P,)`` classes.
        features: ``(P, C)`` float32, of the cells that they are in.
        thumbnails: ``(P, S, S, 3)`` uint8, RGB: the image around each, in a frame of its class's colour.
    """

    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    features: np.ndarray
    thumbnails: np.ndarray


class UnreadableFeature(UserError):
    """The feature of a network could not be read."""


class FeaturePredictor:
    """Predicts whole images at one scale, and reads a feature of the same forward pass.

    Args:
        model: a segmentor, not wrapped.
        tap: the feature.

    Raises:
        ConfigError: there is no such tap.
    """

    def __init__(self, model: nn.Module, tap: str) -> None:
        self._model = model
        self._predict = Predictor(model, InferenceProtocol())
        self._reader = FeatureReader(model, tap)

    @torch.no_grad()
    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns what a predictor does, and "feature" ``(C, h, w)`` with "cell_size", or "problem"."""
        return [self._look(sample) for sample in batched_inputs]

    def _look(self, sample: dict[str, Any]) -> dict[str, Any]:
        try:
            feature, (output,) = self._reader.during(lambda: self._predict([sample]))
        except TapError as error:  # every process learns of it when all of them meet
            return {"problem": str(error)}
        label = tuple(output["sem_seg_labels"].shape)
        cell = cell_size(self._model, sample["image"].shape[-2:], feature.shape[-2:], label)
        return {**output, "feature": feature, "cell_size": cell}


class PixelSampler(DatasetEvaluator):
    """Samples pixels of what a :class:`FeaturePredictor` puts out; in memory that does not grow.

    Which pixels follows from the seed and the images' names alone, not from the number of processes.

    Args:
        read_label: from a sample to its label ``(H, W)``.
        colors: ``(K, 3)`` uint8, RGB.
        pixels_per_class: to sample, at most.
        most: pixels in all; each class gives as many of them as the others where it can.
        seed: a negative one counts as 0.
        image_format: channel order of the samples, RGB or BGR.
    """

    def __init__(
        self,
        read_label: Callable[[dict[str, Any]], np.ndarray],
        colors: np.ndarray,
        *,
        pixels_per_class: int,
        most: int = 5000,
        seed: int = 0,
        image_format: str = "RGB",
    ) -> None:
        self._read_label = read_label
        self._colors = colors
        self._pixels_per_class = pixels_per_class
        self._most = most
        self._seed = seed
        self._image_format = image_format
        self.reset()

    def reset(self) -> None:
        """Forgets all pixels."""
        self._sample = self._empty_sample()
        self._problem = ""

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Samples the pixels of a batch."""
        for sample, output in zip(inputs, outputs, strict=True):
            self._problem = self._problem or output.get("problem", "")
            if not self._problem:
                self._add(sample, output)

    def evaluate(self) -> SampledPixels | None:
        """Gathers the pixels of all processes.

        Returns:
            On the main process the pixels, if there are any; else None.

        Raises:
            UnreadableFeature: on all processes, if one could not read the feature.
        """
        problem = next(filter(None, comm.all_gather(self._problem)), "")
        if problem:
            raise UnreadableFeature(problem)
        gathered = comm.gather(self._sample.kept())
        if not comm.is_main_process():
            return None
        merged = self._empty_sample()
        for classes, columns in gathered:
            if len(classes):
                chosen, slots = merged.choose(classes, columns[_KEY])
                merged.store(slots, **{name: column[chosen] for name, column in columns.items()})
        label, columns = merged.kept()
        if not len(label):
            return None
        kept = even_subset(label, self._most)
        names = [field.name for field in fields(SampledPixels) if field.name != "label"]
        return SampledPixels(label=label[kept], **{name: columns[name][kept] for name in names})

    def _empty_sample(self) -> ClassSample:
        return ClassSample(len(self._colors), self._pixels_per_class)

    def _add(self, sample: dict[str, Any], output: dict[str, Any]) -> None:
        name = str(sample.get("image_id", sample["file_name"]))
        label = np.asarray(self._read_label(sample)).astype(np.int64)
        y, x = np.nonzero((label >= 0) & (label < len(self._colors)))
        keys = pixel_keys(self._seed, name, (label.shape[0], label.shape[1]))[y, x]
        chosen, slots = self._sample.choose(label[y, x], keys)
        y, x = y[chosen], x[chosen]
        feature, (cell_height, cell_width) = output["feature"].cpu().numpy(), output["cell_size"]
        rows = cell_at(y, cell_height, feature.shape[1])
        columns = cell_at(x, cell_width, feature.shape[2])
        image = sample_pixels(sample, self._image_format)
        scale = image.shape[0] / label.shape[0], image.shape[1] / label.shape[1]
        centers = np.stack([(y + 0.5) * scale[0], (x + 0.5) * scale[1]], axis=1).astype(np.int64)
        self._sample.store(
            slots,
            key=keys[chosen],
            image=np.full(len(slots), name, dtype=object),
            y=y.astype(np.int32),
            x=x.astype(np.int32),
            predicted=output["sem_seg_labels"].cpu().numpy()[y, x].astype(np.int64),
            features=feature[:, rows, columns].T,
            thumbnails=draw_thumbnails(image, centers, self._colors[label[y, x]]),
        )


def draw_thumbnails(image: np.ndarray, centers: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Cuts squares out of an image; beyond its border they go on as it ends.

    Args:
        image: ``(H, W, 3)`` uint8.
        centers: ``(n, 2)`` row and column in the middle of each.
        colors: ``(n, 3)`` uint8 of their frames.

    Returns:
        ``(n, S, S, 3)`` uint8.
    """
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL / (_SHOWN_SHARE * min(height, width)))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    offsets = np.arange(THUMBNAIL) - THUMBNAIL // 2
    rows, columns = (
        np.clip((center * scale).astype(np.int64)[:, None] + offsets, 0, side - 1)
        for center, side in zip(centers.T, image.shape, strict=False)
    )
    drawn = image[rows[:, :, None], columns[:, None, :]]
    frame = np.ones((THUMBNAIL, THUMBNAIL), dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    drawn[:, frame] = colors[:, None]
    return drawn
