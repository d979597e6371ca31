"""One pass over the data set for each network, and what came out of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from rich.progress import track

from regseg_d2.apps.explore.sources import Source
from regseg_d2.common.errors import ConfigError
from regseg_d2.evaluation.looking.findings import Collector, Findings
from regseg_d2.evaluation.looking.projections import project
from regseg_d2.evaluation.looking.relations import intra_inter_ratios
from regseg_d2.evaluation.looking.sampling import even_subset
from regseg_d2.evaluation.measures import mean_over

# Points of a projection, at most: t-SNE takes some milliseconds for each.
MOST_POINTS = 4000

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How much is looked at.

    Attributes:
        seed: what is sampled follows from it and the names of the images.
        pixels_per_class: pixels of a class whose features are kept.
        regions_per_class: mean features of a class in an image that are kept.
        images: images that are shown.
        projections: of :data:`regseg_d2.evaluation.looking.projections.METHODS`.
    """

    seed: int = 0
    pixels_per_class: int = 200
    regions_per_class: int = 200
    images: int = 24
    projections: tuple[str, ...] = ("tsne", "pca")


@dataclass(frozen=True)
class Explored:
    """A network and what was found out about it.

    Attributes:
        source: where its views come from.
        findings: over the whole data set.
    """

    source: Source
    findings: Findings

    @property
    def name(self) -> str:
        """What figures call it."""
        return self.source.name

    @cached_property
    def image_scores(self) -> np.ndarray:
        """Mean IoU of each image, ``(N,)`` in percent, over the classes in its label; NaN without one."""
        iou = self.findings.image_iou
        present = ~np.isnan(iou)
        sums, counts = np.where(present, iou, 0).sum(axis=1), present.sum(axis=1)
        return np.divide(sums, counts, out=np.full(len(iou), np.nan), where=counts > 0)

    @cached_property
    def ratios(self) -> np.ndarray:
        """Intra-class over inter-class distance of each class, ``(K,)``."""
        found = self.findings
        return intra_inter_ratios(found.center_counts, found.center_sums, found.center_squares)

    def metrics(self) -> dict[str, float]:
        """Returns scores by name; in percent, but for the ratio of distances."""
        metrics, ratios = self.findings.metrics, self.ratios
        return {
            "mIoU": metrics.miou,
            "boundary mIoU": _mean(self.findings.boundary_iou),
            "pixel accuracy": metrics.pacc,
            "calibration error": self.findings.calibration_error,
            "intra/inter distance": _mean(ratios),
        }


@dataclass(frozen=True)
class Study:
    """Networks that were explored on one data set.

    Attributes:
        explored: at least one; the first is what the others are compared with.
        options: how much was looked at.
        pixels: ``(P,)`` which of the sampled pixels are projected.
        pixel_projections: by method the positions ``(P, 2)`` of each network's pixels.
        regions: ``(R,)`` which of the sampled regions are projected.
        region_projections: by method the positions ``(R, 2)`` of each network's regions.
    """

    explored: Sequence[Explored]
    options: Options
    pixels: np.ndarray
    pixel_projections: Mapping[str, Sequence[np.ndarray]]
    regions: np.ndarray
    region_projections: Mapping[str, Sequence[np.ndarray]]

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return self.explored[0].source.classes

    @property
    def colors(self) -> np.ndarray:
        """Their colours, ``(K, 3)`` uint8."""
        return self.explored[0].source.colors

    def of_each(self, read: Callable[[Explored], T]) -> dict[str, T]:
        """Returns what a function reads of each network, by its name."""
        return {each.name: read(each) for each in self.explored}

    def differing_settings(self) -> list[dict[str, str]]:
        """Returns of each network the settings in which not all are alike, as text."""
        configs = [each.source.settings for each in self.explored]
        keys = sorted({key for config in configs for key in config})
        missing = object()
        wanted = [k for k in keys if any(c.get(k, missing) != configs[0].get(k, missing) for c in configs)]
        return [{key: str(config[key]) for key in wanted if key in config} for config in configs]

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Returns what the training of each network recorded, where it is known."""
        rows = self.of_each(lambda each: each.source.training_log())
        return {name: found for name, found in rows.items() if found}

    def seeds(self) -> dict[str, list[Explored]]:
        """Puts networks together whose settings differ in the seed alone, by the name of the first."""
        groups: list[list[Explored]] = []
        for each in self.explored:
            settings = _without_seed(each)
            same = [g for g in groups if settings is not None and _without_seed(g[0]) == settings]
            (same[0].append(each) if same else groups.append([each]))
        return {
            group[0].name if len(group) == 1 else f"{group[0].name} ({len(group)} seeds)": group
            for group in groups
        }


def _mean(values: np.ndarray) -> float:
    return mean_over(values.tolist(), range(len(values)))


def _without_seed(each: Explored) -> dict[str, Any] | None:
    settings = each.source.settings
    return {key: value for key, value in settings.items() if key != "SEED"} or None


def study(sources: Sequence[Source], options: Options) -> Study:
    """Looks at each network on the whole data set.

    Raises:
        ConfigError: two networks have one name, or other classes or images.
    """
    _check_names(sources)
    explored: list[Explored] = []
    for source in sources:
        collector = Collector(
            len(source.classes),
            options.seed,
            pixels_per_class=options.pixels_per_class,
            regions_per_class=options.regions_per_class,
        )
        for view in track(source, f"looking with {source.name}", total=len(source), transient=True):
            collector.add(view)
        found = Explored(source, collector.findings())
        _check_alike(explored, found)
        explored.append(found)
    first = explored[0].findings
    pixels = even_subset(first.pixel_label, MOST_POINTS)
    regions = even_subset(first.region_label, MOST_POINTS)
    return Study(
        explored,
        options,
        pixels,
        _projections([each.findings.pixel_features[pixels] for each in explored], options),
        regions,
        _projections([each.findings.region_features[regions] for each in explored], options),
    )


def _projections(features: Sequence[np.ndarray], options: Options) -> dict[str, list[np.ndarray]]:
    return {method: project(features, method, options.seed) for method in options.projections}


def _check_names(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    if not names:
        raise ConfigError("There is no network to look at: give the OUTPUT_DIR of a finished run.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two networks are named '{name}': give each a name of its own.")
    for source in sources[1:]:
        if list(source.classes) != list(sources[0].classes):
            raise ConfigError(
                f"'{source.name}' has the classes {list(source.classes)[:5]}… and '{names[0]}' "
                f"{list(sources[0].classes)[:5]}…: expected one data set, and the same classes."
            )


def _check_alike(before: Sequence[Explored], found: Explored) -> None:
    if before and not before[0].findings.same_pixels(found.findings):
        raise ConfigError(
            f"'{found.name}' was shown other images or labels than '{before[0].name}': expected the same "
            "data set for all."
        )
