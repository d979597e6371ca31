"""Orders of the training samples that show rare classes more often.

Both keep the sampler's contract: what sample ``n`` is follows from (seed, ``n``) and the labels alone.
An epoch stays as long as the data set; it only holds other records.
"""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.label_counts import training_label_counts
from regseg_d2.data.main_process import from_main_process
from regseg_d2.data.sampler import CLASS_STREAM, RandomOrder, SampleOrder
from regseg_d2.data.transforms import WantedClass

# Values of DATALOADER.SAMPLER_TRAIN; the first two are Detectron2's names.
RANDOM, REPEAT_FACTOR, RARE_CLASS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RareClassTrainingSampler",
)


def build_sample_order(cfg: CfgNode, size: int, *, seed: int) -> SampleOrder:
    """Builds the order of so many records that ``DATALOADER.SAMPLER_TRAIN`` names, the same in all processes.

    Raises:
        ConfigError: the name is unknown, or a key that belongs to it is out of its range.
        DatasetError: the labels cannot be counted.
    """
    loader = cfg.DATALOADER
    if loader.SAMPLER_TRAIN == RANDOM:
        return RandomOrder(size, seed)
    if loader.SAMPLER_TRAIN == REPEAT_FACTOR:
        if not 0 < loader.REPEAT_THRESHOLD <= 1:
            raise ConfigError(
                f"DATALOADER.REPEAT_THRESHOLD is {loader.REPEAT_THRESHOLD}; {REPEAT_FACTOR} expects the "
                "share of images, above 0 and at most 1, below which a class counts as rare, such as 0.1."
            )
        factors = from_main_process(
            lambda: repeat_factors(
                training_label_counts(cfg).per_image > 0, loader.REPEAT_THRESHOLD, loader.REPEAT_SQRT
            )
        )
        return RepeatFactorOrder(factors, seed=seed)
    if loader.SAMPLER_TRAIN == RARE_CLASS:
        rare = loader.RARE_CLASS
        if not rare.TEMPERATURE > 0 or rare.MIN_PIXELS < 1 or rare.MIN_CROP_PIXELS < 0:
            raise ConfigError(
                f"DATALOADER.RARE_CLASS is {dict(rare)}; expected TEMPERATURE above 0, MIN_PIXELS of 1 or "
                "more, MIN_CROP_PIXELS of 0 or more."
            )
        return from_main_process(
            lambda: RareClassOrder(
                training_label_counts(cfg).per_image,
                seed=seed,
                temperature=rare.TEMPERATURE,
                min_pixels=rare.MIN_PIXELS,
                min_crop_pixels=rare.MIN_CROP_PIXELS,
            )
        )
    raise ConfigError(
        f'DATALOADER.SAMPLER_TRAIN is "{loader.SAMPLER_TRAIN}"; expected {RANDOM}, {REPEAT_FACTOR} or '
        f"{RARE_CLASS}."
    )


def repeat_factors(present: np.ndarray, threshold: float, square_root: bool = True) -> np.ndarray:
    """How many times more often than others each image is to be shown.

    Gupta, Dollar, Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019,
    section 4: with f(c) the share of images that hold class c, r(c) = max(1, sqrt(t / f(c))), and an image
    has the largest r of its classes.

    Args:
        present: whether each image holds each class, ``(N, K)``.
        threshold: t.
        square_root: take the root, as the paper does.

    Returns:
        Array ``(N,)`` of numbers from 1 on; 1 for an image without a class.
    """
    share = present.mean(axis=0)
    # A class that no image holds is no image's.
    ratio = threshold / np.where(share > 0, share, np.inf)
    of_class = np.maximum(1.0, np.sqrt(ratio) if square_root else ratio)
    return np.where(present, of_class, 1.0).max(axis=1)


class RepeatFactorOrder(SampleOrder):
    """Records in proportion to their factors ``(N,)``, each rounded up or down by chance in every epoch.

    (Detectron2's sampler makes epochs longer by the mean factor; here they keep their length, so that the
    number of the epoch of a sample does not depend on chance. The proportions are the same.)
    """

    def __init__(self, factors: np.ndarray, *, seed: int) -> None:
        self.factors = factors
        self.seed = seed

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns N record indices: systematic sampling along a random order, then shuffled."""
        rng = np.random.default_rng((CLASS_STREAM, self.seed, epoch))
        records = rng.permutation(len(self.factors))
        # Record i takes the whole numbers within its stretch of a line of length N that begins by chance.
        ends = np.cumsum(self.factors[records])
        ends = np.floor(ends * (len(records) / ends[-1]) + rng.random()).astype(np.int64)
        ends[-1] = len(records)
        return rng.permutation(np.repeat(records, np.diff(ends, prepend=0)))


class RareClassOrder(SampleOrder):
    """A class by chance, rare ones more often, then one of the records that show it.

    Hoyer, Dai, Van Gool, "DAFormer: Improving Network Architectures and Training Strategies for
    Domain-Adaptive Semantic Segmentation", CVPR 2022, section 3.3: with f(c) the share of the pixels that
    class c has, P(c) is the softmax of (1 - f(c)) / T over the classes that occur.

    Args:
        per_image: pixels of each class in each label, ``(N, K)``.
        seed: seed of the run.
        temperature: T.
        min_pixels: pixels of the class in a record that is drawn for it; where no record has as many, those
            with the most are drawn.
        min_crop_pixels: pixels of the class that the crop should show.

    Raises:
        DatasetError: no label has a pixel with a class.
    """

    def __init__(
        self, per_image: np.ndarray, *, seed: int, temperature: float, min_pixels: int, min_crop_pixels: int
    ) -> None:
        pixels = per_image.sum(axis=0, dtype=np.int64)
        if not pixels.any():
            raise DatasetError("No training label has a pixel with a class; there is nothing to sample by.")
        self.size = len(per_image)
        self.seed = seed
        self.min_crop_pixels = min_crop_pixels
        self.probabilities = rare_class_probabilities(pixels, temperature)
        # Of a class that is rarer than min_pixels everywhere, the records with the most of it.
        enough = np.minimum(per_image.max(axis=0), min_pixels)
        self._records = [
            np.flatnonzero((column >= least) & (column > 0)).astype(np.int32)
            for column, least in zip(per_image.T, enough, strict=True)
        ]
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns N record indices."""
        return self._draw(epoch)[1]

    def wanted_class(self, sample_number: int) -> WantedClass:
        """Returns the class that a sample was drawn for."""
        classes, _ = self._draw(sample_number // self.size)
        return WantedClass(int(classes[sample_number % self.size]), self.min_crop_pixels)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes and records of an epoch; those of the last one asked for are kept."""
        if self._drawn is None or self._drawn[0] != epoch:
            rng = np.random.default_rng((CLASS_STREAM, self.seed, epoch))
            classes = rng.choice(len(self.probabilities), size=self.size, p=self.probabilities)
            places = rng.random(self.size)
            records = np.empty(self.size, dtype=np.int64)
            for index in np.unique(classes):
                candidates, chosen = self._records[index], classes == index
                records[chosen] = candidates[(places[chosen] * len(candidates)).astype(np.int64)]
            self._drawn = epoch, classes, records
        return self._drawn[1:]


def rare_class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) of :class:`RareClassOrder` from the pixels of each class ``(K,)``."""
    exponents = np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()
