"""What is found out about a network over a data set, and who gathers it in one pass."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.npyio import NpzFile
from torch import Tensor

from regseg_d2.common.errors import ConfigError, DatasetError, OptionError, UserError, printable
from regseg_d2.common.files import atomic_writer
from regseg_d2.evaluation.confusion import confusion_counts
from regseg_d2.evaluation.looking.boundaries import BOUNDARY_RATIO, BoundaryCounts
from regseg_d2.evaluation.looking.pair_images import PairImages
from regseg_d2.evaluation.looking.sampling import ClassSample, pixel_keys, region_features, region_keys
from regseg_d2.evaluation.looking.score_histogram import ScoreHistogram
from regseg_d2.evaluation.looking.views import View
from regseg_d2.evaluation.measures import Calibration, ClassCenters, calibration_error, valid_pixels
from regseg_d2.evaluation.metrics import SegmentationMetrics, compute_metrics

# What the logarithm of a probability counts as that is 0 in float32.
_LOWEST_SCORE = float(np.log(np.finfo(np.float32).tiny))
_IMAGES_PER_PAIR = 5
# Cells of a strip of the feature: large arrays of another size for each image would fragment the heap.
_STRIP_CELLS = 1 << 10
# What reading a zip file of arrays ends with if it is none, or was changed.
_UNREADABLE = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def _array(dtype: str, dimensions: str) -> Any:
    """A field that is an array of this type, whose dimensions have names or lengths."""
    return field(metadata={"dtype": dtype, "dimensions": dimensions.split()})


@dataclass(frozen=True, eq=False)
class Findings:
    """What :class:`Collector` gathers: K classes, N images, B bins, C channels, P pixels, R regions.

    Images are in the order in which they were added; pixels and regions are sorted by class, and within a
    class at random, so that the first of each are a sample as well. Void pixels are nowhere.

    Attributes:
        confusion: ``(K, K)`` int64 pixels, [true, predicted].
        image_names: ``(N,)``.
        image_pixels: ``(N, K)`` int32 pixels of each class in each image's label.
        intersections: ``(N, K)`` int32 pixels that label and prediction have in common.
        unions: ``(N, K)`` int32 pixels that one of them has.
        pair_images: ``(K, K, 5)`` int32 numbers of the images in which class [true] is most taken for class
            [predicted], -1 for none; for a class and itself, in which most of it is right.
        pair_counts: ``(K, K, 5)`` int64 pixels of the pair in these images.
        center_counts: ``(K,)`` float64 cells of the feature, by the label at their centers.
        center_sums: ``(K, C)`` float64 sums of their features.
        center_squares: ``(K,)`` float64 sums of their squared lengths.
        unit_sums: ``(K, C)`` float64 sums of their features at unit length.
        score_edges: ``(B + 1,)`` float64 borders of the bins of scores.
        score_counts: ``(3, K, B)`` int64 pixels by the score of class k: its TP, FP and FN.
        calibration_pixels: ``(bins,)`` float64 pixels by their largest probability.
        calibration_confidence: ``(bins,)`` float64 sums of these probabilities.
        calibration_right: ``(bins,)`` float64 pixels of them that are right.
        boundary_intersections: ``(K,)`` int64, see :mod:`~regseg_d2.evaluation.looking.boundaries`.
        boundary_unions: ``(K,)`` int64.
        pixel_image: ``(P,)`` int32 numbers of the images of the pixels that were sampled.
        pixel_y: ``(P,)`` int32 rows in the label.
        pixel_x: ``(P,)`` int32 columns.
        pixel_label: ``(P,)`` int64.
        pixel_predicted: ``(P,)`` int64.
        pixel_confidence: ``(P,)`` float32 largest probabilities.
        pixel_features: ``(P, C)`` float32 features of the cells that the pixels are in.
        region_image: ``(R,)`` int32 numbers of the images of the regions that were sampled.
        region_label: ``(R,)`` int64.
        region_features: ``(R, C)`` float32 means over the pixels of the class in the image.

    Raises:
        ValueError: an array has another type or shape.
    """

    confusion: np.ndarray = _array("int64", "K K")
    image_names: np.ndarray = _array("str", "N")
    image_pixels: np.ndarray = _array("int32", "N K")
    intersections: np.ndarray = _array("int32", "N K")
    unions: np.ndarray = _array("int32", "N K")
    pair_images: np.ndarray = _array("int32", f"K K {_IMAGES_PER_PAIR}")
    pair_counts: np.ndarray = _array("int64", f"K K {_IMAGES_PER_PAIR}")
    center_counts: np.ndarray = _array("float64", "K")
    center_sums: np.ndarray = _array("float64", "K C")
    center_squares: np.ndarray = _array("float64", "K")
    unit_sums: np.ndarray = _array("float64", "K C")
    score_edges: np.ndarray = _array("float64", "E")
    score_counts: np.ndarray = _array("int64", "3 K B")
    calibration_pixels: np.ndarray = _array("float64", "L")
    calibration_confidence: np.ndarray = _array("float64", "L")
    calibration_right: np.ndarray = _array("float64", "L")
    boundary_intersections: np.ndarray = _array("int64", "K")
    boundary_unions: np.ndarray = _array("int64", "K")
    pixel_image: np.ndarray = _array("int32", "P")
    pixel_y: np.ndarray = _array("int32", "P")
    pixel_x: np.ndarray = _array("int32", "P")
    pixel_label: np.ndarray = _array("int64", "P")
    pixel_predicted: np.ndarray = _array("int64", "P")
    pixel_confidence: np.ndarray = _array("float32", "P")
    pixel_features: np.ndarray = _array("float32", "P C")
    region_image: np.ndarray = _array("int32", "R")
    region_label: np.ndarray = _array("int64", "R")
    region_features: np.ndarray = _array("float32", "R C")

    def __post_init__(self) -> None:
        sizes = {"E": self.score_counts.shape[-1] + 1} if self.score_counts.ndim else {}
        for each in dataclasses.fields(self):
            values, names = getattr(self, each.name), each.metadata["dimensions"]
            expected = tuple(
                int(name) if name.isdecimal() else sizes.setdefault(name, size)
                for name, size in zip(names, values.shape, strict=False)
            )
            if np.dtype(each.metadata["dtype"]).kind != values.dtype.kind or values.ndim != len(names):
                raise ValueError(f"{each.name} is {values.dtype} {values.shape}")
            if values.shape != expected:
                raise ValueError(f"{each.name} is of shape {values.shape}; expected {expected}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a compressed ``.npz`` with an array a field; equal findings make equal files."""
        arrays = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        with atomic_writer(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Findings:
        """Reads what :meth:`save` wrote.

        Raises:
            UserError: the file is not such a one.
        """
        with open(path, "rb") as opened:
            try:
                with NpzFile(opened, allow_pickle=False) as file:
                    return cls(**{each.name: np.asarray(file[each.name]) for each in dataclasses.fields(cls)})
            except _UNREADABLE as error:
                raise UserError(
                    f"{path} holds no findings: {printable(str(error))}. Expected a .npz of "
                    "them: write it again."
                ) from error

    @property
    def metrics(self) -> SegmentationMetrics:
        """Scores of the confusion matrix."""
        return compute_metrics(self.confusion.T)

    @property
    def centers(self) -> np.ndarray:
        """Mean feature of each class, ``(K, C)``; NaN for a class without a cell."""
        return _quotient(self.center_sums, self.center_counts[:, None])

    @cached_property
    def image_iou(self) -> np.ndarray:
        """IoU of each class in each image in percent, ``(N, K)``; NaN where it is not in the label."""
        return 100 * _quotient(self.intersections, np.where(self.image_pixels > 0, self.unions, 0))

    @property
    def boundary_iou(self) -> np.ndarray:
        """Boundary IoU of each class in percent, ``(K,)``; NaN for a class that is in no label."""
        is_present = self.confusion.sum(axis=1) > 0
        return 100 * _quotient(self.boundary_intersections, np.where(is_present, self.boundary_unions, 0))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in percent; NaN without a pixel."""
        return calibration_error(self.calibration_pixels, self.calibration_confidence, self.calibration_right)

    def same_pixels(self, other: Findings) -> bool:
        """Whether the pixels that were sampled are those of other findings, in the same order."""
        return all(
            np.array_equal(mine, others)
            for mine, others in (
                (self.image_names[self.pixel_image], other.image_names[other.pixel_image]),
                (self.pixel_y, other.pixel_y),
                (self.pixel_x, other.pixel_x),
                (self.pixel_label, other.pixel_label),
            )
        )


class Collector:
    """Gathers :class:`Findings` image after image; of an image it keeps a few numbers.

    Args:
        num_classes: K.
        seed: what is sampled follows from it and the images' names alone; a negative one counts as 0.
        pixels_per_class: pixels of each class to sample, at most.
        regions_per_class: mean features of a class in an image to sample of each class, at most.
        score_bins: bins of the scores, a multiple of 4; half of them are below 0.
        calibration_bins: bins of the largest probability.
        boundary_ratio: width of a boundary over the image's diagonal.

    Raises:
        OptionError: an argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        seed: int = 0,
        *,
        pixels_per_class: int = 200,
        regions_per_class: int = 200,
        score_bins: int = 512,
        calibration_bins: int = 15,
        boundary_ratio: float = BOUNDARY_RATIO,
    ) -> None:
        for name, value in (
            ("num_classes", num_classes),
            ("pixels_per_class", pixels_per_class),
            ("regions_per_class", regions_per_class),
            ("calibration_bins", calibration_bins),
        ):
            _check(name, value, value >= 1, "1 or more")
        _check("score_bins", score_bins, score_bins >= 4 and score_bins % 4 == 0, "a multiple of 4")
        _check("boundary_ratio", boundary_ratio, boundary_ratio > 0, "above 0")
        self.num_classes = num_classes
        self.seed = seed
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._names: dict[str, None] = {}  # in their order
        # Pixels, intersections and unions of each image; the room for them doubles.
        self._image_counts = np.zeros((3, 64, num_classes), dtype=np.int32)
        self._pairs = PairImages(num_classes, _IMAGES_PER_PAIR)
        self._scores = ScoreHistogram(num_classes, score_bins)
        self._calibration = Calibration(calibration_bins)
        self._boundaries = BoundaryCounts(num_classes, boundary_ratio)
        self._pixels = ClassSample(num_classes, pixels_per_class)
        self._regions = ClassSample(num_classes, regions_per_class)
        self._centers: tuple[ClassCenters, ClassCenters] | None = None  # of features, and at unit length

    def add(self, view: View) -> None:
        """Adds an image.

        Raises:
            ConfigError: the network has another number of classes or channels than before, or a value that is
                not finite.
            DatasetError: an image of this name was added before.
        """
        feature = view.feature.cpu()
        centers = self._checked_centers(view, feature)
        self._names[view.name] = None
        self._count_labels(view)
        self._count_scores(view)
        rows = max(1, _STRIP_CELLS // feature.shape[2])
        strips = zip(feature.split(rows, dim=1), view.cell_labels.cpu().split(rows), strict=True)
        for strip, labels in strips:
            x, y = valid_pixels(strip, labels, self.num_classes)
            for each, features in zip(centers, (x, F.normalize(x, dim=1)), strict=True):
                each.add_pixels(features, y)
        self._sample(view, feature.numpy())

    def findings(self) -> Findings:
        """Returns what was gathered so far.

        Raises:
            DatasetError: no image was added.
        """
        if self._centers is None:
            raise DatasetError("There is no image to look at: the data set is empty.")
        features, units = self._centers
        image_pixels, intersections, unions = self._image_counts[:, : len(self._names)].copy()
        pixel_label, pixels = self._pixels.kept()
        region_label, regions = self._regions.kept()
        return Findings(
            confusion=self._confusion.copy(),
            image_names=np.array(list(self._names)),
            image_pixels=image_pixels,
            intersections=intersections,
            unions=unions,
            pair_images=self._pairs.images.copy(),
            pair_counts=self._pairs.counts.copy(),
            center_counts=features.counts.numpy().copy(),
            center_sums=features.sums.numpy().copy(),
            center_squares=features.squares.numpy().copy(),
            unit_sums=units.sums.numpy().copy(),
            score_edges=self._scores.edges,
            score_counts=self._scores.counts.copy(),
            calibration_pixels=self._calibration.pixels.copy(),
            calibration_confidence=self._calibration.confidence.copy(),
            calibration_right=self._calibration.right.copy(),
            boundary_intersections=self._boundaries.intersections.copy(),
            boundary_unions=self._boundaries.unions.copy(),
            pixel_label=pixel_label,
            **{f"pixel_{name}": values for name, values in pixels.items()},
            region_label=region_label,
            **{f"region_{name}": values for name, values in regions.items()},
        )

    def _checked_centers(self, view: View, feature: Tensor) -> tuple[ClassCenters, ClassCenters]:
        who = f"Image '{printable(view.name)}'"
        if view.name in self._names:
            raise DatasetError(f"{who} was looked at before: give each image a name of its own.")
        if view.num_classes != self.num_classes:
            raise ConfigError(
                f"{who}: the network has {view.num_classes} classes; expected {self.num_classes}, "
                "those of the data set."
            )
        if self._centers is None:
            cpu, channels = torch.device("cpu"), feature.shape[0]
            first, second = (ClassCenters(self.num_classes, channels, cpu) for _ in range(2))
            self._centers = first, second
        channels = self._centers[0].sums.shape[1]
        if feature.shape[0] != channels:
            raise ConfigError(
                f"{who}: the feature has {feature.shape[0]} channels; expected {channels}, as of the images "
                "before it."
            )
        for what, values in (("probabilities", view.confidence), ("feature", feature)):
            if not bool(values.isfinite().all()):
                raise ConfigError(
                    f"{who}: the network's {what} are not finite. It has diverged, or its weights are not "
                    "those of this config."
                )
        return self._centers

    def _count_labels(self, view: View) -> None:
        label, void = view.label, self.num_classes
        table = confusion_counts(view.predicted, torch.where(label < 0, void, label), void, void)
        assert table is not None  # a view's labels are classes or void
        confusion = table.T.cpu().numpy()
        pixels, right = confusion.sum(axis=1), confusion.diagonal()
        counts = np.stack([pixels, right, pixels + confusion.sum(axis=0) - right])
        self._confusion += confusion
        number = len(self._names) - 1
        self._pairs.add(confusion, number)
        if number == self._image_counts.shape[1]:
            self._image_counts = np.pad(self._image_counts, ((0, 0), (0, number), (0, 0)))
        self._image_counts[:, number] = counts
        self._boundaries.add(label.cpu().numpy(), view.predicted.cpu().numpy())

    def _count_scores(self, view: View) -> None:
        valid = (view.label >= 0).flatten().nonzero().squeeze(1)
        label, predicted, largest, confidence = (
            values.flatten()[valid]
            for values in (view.label, view.predicted, view.largest_score, view.confidence)
        )
        own = view.scores.flatten(1)[label, valid].nan_to_num(neginf=_LOWEST_SCORE)
        right = (label == predicted).cpu().numpy()
        self._calibration.add_pixels(confidence.double().cpu().numpy(), right)
        self._scores.add(*(values.cpu().numpy() for values in (label, predicted, own, largest)))

    def _sample(self, view: View, feature: np.ndarray) -> None:
        number = len(self._names) - 1
        label = view.label.cpu().numpy()
        y, x = np.nonzero(label >= 0)
        chosen, slots = self._pixels.choose(label[y, x], pixel_keys(self.seed, view.name, view.size)[y, x])
        y, x = y[chosen], x[chosen]
        rows, columns = view.cell_of(y, x)
        self._pixels.store(
            slots,
            image=np.full(len(slots), number, dtype=np.int32),
            y=y.astype(np.int32),
            x=x.astype(np.int32),
            predicted=view.predicted.cpu().numpy()[y, x],
            confidence=view.confidence.cpu().numpy()[y, x],
            features=feature[:, rows, columns].T,
        )
        present = np.flatnonzero(self._image_counts[0, number])
        chosen, slots = self._regions.choose(
            present, region_keys(self.seed, view.name, self.num_classes)[present]
        )
        self._regions.store(
            slots,
            image=np.full(len(slots), number, dtype=np.int32),
            features=region_features(view, label, feature, present[chosen]),
        )


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)


def _check(argument: str, value: object, fine: bool, expected: str) -> None:
    if not fine:
        raise OptionError("Collector", argument, f"is {value!r}; expected {expected}")
