"""The images that are shown: which ones, and what each network makes of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from regseg_d2.apps.explore.page.content import ImageOfRun, PageImage
from regseg_d2.apps.explore.study import Study
from regseg_d2.evaluation.looking.sampling import image_key


@dataclass(frozen=True)
class Choice:
    """Images of the data set, by number.

    Attributes:
        worst: those that all networks together do worst on, the worst first.
        differing: those on which the networks differ most, likewise.
        confused: those with the most of each of the most frequent confusions.
        random: drawn from the rest.
    """

    worst: Sequence[int]
    differing: Sequence[int]
    confused: Sequence[int]
    random: Sequence[int]

    @property
    def all(self) -> list[int]:
        """All of them."""
        return [*self.worst, *self.differing, *self.confused, *self.random]


def choose_images(study: Study) -> Choice:
    """Chooses images, as many of each kind; no image is of two kinds."""
    names = study.explored[0].findings.image_names
    scores = np.stack([each.image_scores for each in study.explored])
    count = min(study.options.images, len(names))
    several = len(study.explored) > 1
    share = -(-count // (4 if several else 3))
    left = set(range(len(names)))

    def take(values: np.ndarray, number: int) -> list[int]:
        """The smallest values among the images that are left; images without one come last."""
        order = sorted(left, key=lambda i: (np.isnan(values[i]), values[i], names[i]))[:number]
        left.difference_update(order)
        return order

    worst = take(scores.mean(axis=0), share)
    rest = count - len(worst)
    differing = take(scores.min(axis=0) - scores.max(axis=0), min(share, rest)) if several else []
    rest -= len(differing)
    confused = [number for number in _confused(study) if number in left][: min(share, rest)]
    left.difference_update(confused)
    keys = np.array([image_key(study.options.seed, name) for name in names], dtype=np.float64)
    return Choice(worst, differing, confused, take(keys, rest - len(confused)))


def _confused(study: Study) -> list[int]:
    """The image with most of each confusion, the most frequent confusions first, for their class's pixels."""
    found: dict[int, float] = {}
    for each in study.explored:
        confusion = each.findings.confusion
        rates = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        for (label, predicted), images in np.ndenumerate(each.findings.pair_images[..., 0]):
            if label != predicted and images >= 0:
                rate = float(rates[label, predicted])
                found[int(images)] = max(rate, found.get(int(images), 0.0))
    return sorted(found, key=lambda number: (-found[number], number))


class Gallery(Collection[PageImage]):
    """Images with what each network makes of them, kept in files: any number fits into memory.

    Args:
        study: what the networks come from; they look at the images once more.
        numbers: of the images.
        folder: for the files.
    """

    def __init__(self, study: Study, numbers: Sequence[int], folder: Path) -> None:
        self._study, self._folder = study, folder
        self.numbers = list(numbers)
        names = [str(study.explored[0].findings.image_names[number]) for number in numbers]
        for position, each in enumerate(study.explored):
            views = each.source.subset(names)
            what = f"pictures of {each.name}"
            for index, view in enumerate(track(views, what, total=len(names), transient=True)):
                data = {"pixels": view.pixels, "label": view.label.cpu().numpy()} if position == 0 else {}
                np.savez(
                    self._file(index, position),
                    predicted=view.predicted.cpu().numpy(),
                    feature=view.feature.cpu().numpy(),
                    cell_size=np.array(view.cell_size),
                    cell_labels=view.cell_labels.cpu().numpy(),
                    cell_predictions=view.cell_predictions.cpu().numpy(),
                    **data,
                )

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[PageImage]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, image: object) -> bool:
        return any(each is image for each in self)

    def __getitem__(self, index: int) -> PageImage:
        number = self.numbers[index]
        runs = []
        for position, each in enumerate(self._study.explored):
            stored = np.load(self._file(index, position))
            if position == 0:
                pixels, label = stored["pixels"], stored["label"]
            height, width = stored["cell_size"].tolist()
            runs.append(
                ImageOfRun(
                    predicted=stored["predicted"],
                    iou=each.findings.image_iou[number],
                    mean_iou=float(each.image_scores[number]),
                    feature=stored["feature"],
                    cell_size=(height, width),
                )
            )
        return PageImage(str(self._study.explored[0].findings.image_names[number]), pixels, label, runs)

    def cells(self, index: int, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Feature ``(C, h, w)``, labels and predictions ``(h, w)`` at cells, of an image and a network."""
        stored = np.load(self._file(index, position))
        feature, labels, predictions = (
            torch.from_numpy(stored[key]) for key in ("feature", "cell_labels", "cell_predictions")
        )
        return feature, labels, predictions

    def _file(self, index: int, position: int) -> Path:
        return self._folder / f"{index}_{position}.npz"
