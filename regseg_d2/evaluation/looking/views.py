"""What a network shows of an image, whichever network it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from regseg_d2.common.errors import ConfigError, DatasetError, printable
from regseg_d2.evaluation.inference.argmax import argmax_classes

# Far below the distance between a place and the next pixel border that it is not on, and far above the
# rounding of a cell's size that is a quotient of two integers.
_ROUNDING = 1e-9
# Pixels of a strip: all classes of it stay in a core's cache.
_STRIP_PIXELS = 1 << 12

Places = TypeVar("Places", int, np.ndarray)


@dataclass(frozen=True, eq=False)
class View:
    """An image, its label, and what a network makes of both; tensors are on one device.

    Cell ``(i, j)`` of the feature covers rows ``i * cell_size[0]`` to ``(i + 1) * cell_size[0]`` of the
    label, and columns likewise. Where the network pads, cells reach over the image's lower and right border.

    Attributes:
        name: unique name of the image, such as its path below the data set's folder.
        pixels: ``(H, W, 3)`` uint8, RGB.
        label: ``(H, W)`` int64, 0 to K - 1 or -1 for void.
        scores: ``(K, H, W)`` float32 whose softmax over K gives probabilities: logits, or log probabilities.
        feature: ``(C, h, w)`` float32.
        cell_size: height and width of a cell in pixels of the label.

    Raises:
        DatasetError: pixels or label are not as above, or of two sizes.
        ConfigError: scores, feature or cells are not as above, have a gradient, or do not fit the label.
    """

    name: str
    pixels: np.ndarray
    label: Tensor
    scores: Tensor
    feature: Tensor
    cell_size: tuple[float, float]

    def __post_init__(self) -> None:
        self._check_data()
        self._check_network()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the label."""
        return self.label.shape[0], self.label.shape[1]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.scores.shape[0]

    @cached_property
    def predicted(self) -> Tensor:
        """``(H, W)`` int64, the class of the largest score; the first one of several."""
        return argmax_classes(self.scores).long()

    @cached_property
    def largest_score(self) -> Tensor:
        """``(H, W)`` float32, the score of the predicted class."""
        return self.scores.gather(0, self.predicted.unsqueeze(0))[0]

    @cached_property
    def confidence(self) -> Tensor:
        """``(H, W)`` float32, the probability of the predicted class; no probability of others is held."""
        strips = (
            values.flatten(-2).split(_STRIP_PIXELS, dim=-1) for values in (self.scores, self.largest_score)
        )
        # The predicted class has exp(0) in the sum, and the probability 1 over it.
        sums = [(scores - largest).exp_().sum(dim=0) for scores, largest in zip(*strips, strict=True)]
        return torch.cat(sums).reciprocal_().view(self.size)

    @cached_property
    def cell_labels(self) -> Tensor:
        """``(h, w)`` int64, the label at each cell's center; -1 for void and in the padding."""
        return self._at_centers(self.label)

    @cached_property
    def cell_predictions(self) -> Tensor:
        """``(h, w)`` int64, the prediction at each cell's center; -1 in the padding."""
        return self._at_centers(self.predicted)

    def cell_of(self, y: Places, x: Places) -> tuple[Places, Places]:
        """Row and column of the cells that the centers of pixels are in.

        Args:
            y: row of a pixel of the label, or an array of them.
            x: column, likewise.
        """
        rows, columns = self.feature.shape[1:]
        return cell_at(y, self.cell_size[0], rows), cell_at(x, self.cell_size[1], columns)

    def _at_centers(self, values: Tensor) -> Tensor:
        (height, width), (rows, columns) = self.size, self.feature.shape[1:]
        y, x = _centers(rows, self.cell_size[0]), _centers(columns, self.cell_size[1])
        cells = values.new_full((rows, columns), -1)
        inside_y, inside_x = int((y < height).sum()), int((x < width).sum())
        cells[:inside_y, :inside_x] = values[y[:inside_y, None], x[:inside_x]]
        return cells

    def _check_data(self) -> None:
        label, size = self.label, tuple(self.label.shape)
        if label.dtype != torch.int64 or label.ndim != 2 or not label.numel():
            raise DatasetError(
                f"{self._who}: the label is {_described(label)}; expected int64 (H, W), with -1 for void."
            )
        if self.pixels.dtype != np.uint8 or self.pixels.shape != (*size, 3):
            raise DatasetError(
                f"{self._who}: the pixels are {_described(self.pixels)}; expected uint8 {(*size, 3)}, RGB at "
                "the label's size."
            )

    def _check_network(self) -> None:
        size = self.size
        scores, feature = self.scores, self.feature
        if scores.dtype != torch.float32 or scores.ndim != 3 or tuple(scores.shape[1:]) != size:
            raise ConfigError(
                f"{self._who}: the scores are {_described(scores)}; expected float32 (K, {size[0]}, "
                f"{size[1]}), logits or log probabilities at the label's size."
            )
        lowest, highest = (int(value) for value in torch.aminmax(self.label))
        if lowest < -1 or highest >= self.num_classes:
            raise DatasetError(
                f"{self._who}: its label has values from {lowest} to {highest}, and the network has "
                f"{self.num_classes} classes; expected 0 to {self.num_classes - 1}, or -1 for void: "
                "correct the label_map, or take the network's data set."
            )
        if feature.dtype != torch.float32 or feature.ndim != 3 or not feature.numel():
            raise ConfigError(
                f"{self._who}: the feature is {_described(feature)}; expected float32 (C, h, w)."
            )
        if scores.requires_grad or feature.requires_grad:
            raise ConfigError(
                f"{self._who}: scores or feature have a gradient, which would keep the whole network's "
                "work: run it within torch.no_grad()."
            )
        covered = [cells * side for cells, side in zip(feature.shape[1:], self.cell_size, strict=True)]
        # The center of the last pixel has to be in a cell.
        if not all(reach >= side - 0.5 for reach, side in zip(covered, size, strict=True)):
            raise ConfigError(
                f"{self._who}: {feature.shape[1]} x {feature.shape[2]} cells of {self.cell_size[0]:g} x "
                f"{self.cell_size[1]:g} pixels do not cover an image of {size[0]} x {size[1]}: give "
                "the cells' height and width in pixels of the label."
            )

    @property
    def _who(self) -> str:
        return f"Image '{printable(self.name)}'"


class ViewSource(Protocol):
    """Views of a data set by one network; may be gone through more than once.

    Attributes:
        name: what to call the network.
        classes: their names.
        colors: ``(K, 3)`` uint8, RGB.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def colors(self) -> np.ndarray: ...  # noqa: D102

    def __iter__(self) -> Iterator[View]:
        """All images, in the same order each time."""

    def subset(self, names: Sequence[str]) -> Iterable[View]:
        """The images of these names, in this order."""


def _centers(cells: int, side: float) -> Tensor:
    """Pixels ``(cells,)`` at the centers of the cells of a side."""
    return ((torch.arange(cells, dtype=torch.float64) + 0.5) * side + _ROUNDING).long()


def cell_at(position: Places, side: float, cells: int) -> Places:
    """Number of the cell that the center of a pixel is in; of several pixels in an array, too."""
    cell = (position + 0.5) / side + _ROUNDING
    if isinstance(cell, np.ndarray):
        return np.minimum(cell.astype(np.int64), cells - 1)
    return min(int(cell), cells - 1)


def _described(values: Any) -> str:
    """Type and shape of an array, for a message."""
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
