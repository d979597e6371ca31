"""Small pictures of some samples, as texts that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from regseg_d2.data.images import read_image
from regseg_d2.data.resampling import resize_image, resize_label
from regseg_d2.dataset_tools.inspection.collect import DatasetFacts
from regseg_d2.dataset_tools.inspection.samples import VALUES, SampleFacts
from regseg_d2.drawing.overlay import LegendEntry, blend, legend_of

_LONGER_SIDE = 400


@dataclass(frozen=True)
class Thumbnail:
    """Data URIs of an image and of the same under its labels, and the classes in it."""

    image_id: str
    image: str
    overlay: str
    legend: list[LegendEntry]


def make_thumbnails(facts: DatasetFacts, num_shown: int) -> list[Thumbnail]:
    """Draws up to ``num_shown`` samples that together show as many classes as possible, in their order.

    Of those with a problem, only labels with unknown values are shown; they are hatched where a value means
    nothing.
    """
    usable = [
        i
        for i, sample in enumerate(facts.samples)
        if all(problem.kind == VALUES for problem in sample.problems)
    ]
    return [_draw(facts, facts.samples[i]) for i in choose_samples(facts.per_image, usable, num_shown)]


def choose_samples(per_image: np.ndarray, usable: Sequence[int], number: int) -> list[int]:
    """Chooses samples to show: for each class, from the rarest on, the one with most of it; then evenly.

    ``per_image`` are the pixels of each class in each sample ``(N, K)``; samples, given and returned, ascend.
    """
    usable = list(usable)
    if len(usable) <= number:
        return usable
    counts = per_image[usable]
    chosen: set[int] = set()
    for class_index in np.argsort(counts.sum(axis=0), kind="stable"):
        column = counts[:, class_index]
        shown = any(per_image[i, class_index] for i in chosen)
        if len(chosen) < number and column.any() and not shown:
            chosen.add(usable[int(column.argmax())])
    others = [i for i in usable if i not in chosen]
    wanted = number - len(chosen)
    chosen.update(others[k * len(others) // wanted] for k in range(wanted))
    return sorted(chosen)


def _draw(facts: DatasetFacts, sample: SampleFacts) -> Thumbnail:
    image = read_image(sample.image_file)
    label = _known_labels(facts, sample.label_file)
    scale = min(_LONGER_SIDE / max(label.shape), 1)
    size = tuple(max(round(side * scale), 1) for side in label.shape)
    small_image, small_label = resize_image(image, size), resize_label(label, size)
    return Thumbnail(
        sample.image_id,
        _data_uri(small_image),
        _data_uri(blend(small_image, small_label, facts.colors)),
        legend_of(label, facts.classes, facts.colors),
    )


def _known_labels(facts: DatasetFacts, path: str) -> np.ndarray:
    """Labels (H, W) as the reader gives them, with the ignore value where it would raise."""
    values, places = np.unique(facts.reader.file_values(path), return_inverse=True)
    ignore = facts.reader.ignore_value
    targets = np.array([facts.meanings.get(value, ignore) for value in values.tolist()])
    return targets[places]


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    # Without colour subsampling: it would blur the borders of the classes.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
