"""The list ``INPUT.AUGMENTATIONS``: built from names and arguments, and run on image and label alike."""

from __future__ import annotations

import importlib
import inspect
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T  # noqa: N812 (the name that Detectron2 itself uses)

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import IMPORTS_HINT, did_you_mean
from regseg_d2.data.augmentations import AUGMENTATION
from regseg_d2.data.sampler import LIST_STREAM

KEY = "INPUT.AUGMENTATIONS"
NAME = "NAME"
# Entry that stands for the mapper's own scale, crop and colour jitter.
CROP = "CROP"
_FORM = f"{{{NAME}: RandomRotation, angle: [-10, 10]}}, or {CROP}"


def build_augmentations(entries: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Builds the augmentations before and behind the crop.

    Args:
        entries: mappings of ``NAME`` and arguments, in the order in which they are applied, and at most once
            the text ``CROP``; without it all come before the crop.

    Raises:
        ConfigError: a name or an argument is unknown, an augmentation refuses its arguments, or an entry is
            of another form.
    """
    entries = list(entries)
    if entries.count(CROP) > 1:
        raise ConfigError(f"{KEY} has {CROP} {entries.count(CROP)} times; expected once or never")
    built = [None if entry == CROP else _build(entry, f"{KEY}[{i}]") for i, entry in enumerate(entries)]
    place = entries.index(CROP) if CROP in entries else len(entries)
    before, behind = built[:place], built[place + 1 :]
    return [each for each in before if each is not None], [each for each in behind if each is not None]


def _build(entry: Any, place: str) -> Any:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(NAME), str):
        raise ConfigError(f"{place} is {entry!r}; expected a mapping such as {_FORM}")
    name = entry[NAME]
    kind = _find(name, place)
    known = [argument for argument in inspect.signature(kind).parameters if argument != "self"]
    arguments = {}
    for key, value in entry.items():
        if key == NAME:
            continue
        if key not in known:
            raise ConfigError(
                f"{place}: {name} has no argument {key!r}{did_you_mean(str(key), known)}; it has {known}"
            )
        arguments[key] = _build_inner(value, f"{place}.{key}")
    try:
        return kind(**arguments)
    except Exception as error:
        raise ConfigError(
            f"{place}: {name} refuses {arguments}: {type(error).__name__}: {error}; its arguments are {known}"
        ) from error


def _build_inner(value: Any, place: str) -> Any:
    """Arguments may be augmentations: ``RandomApply`` has one, ``AugmentationList`` a list."""
    if isinstance(value, Mapping):
        return _build(value, place)
    if isinstance(value, (list, tuple)):
        return [_build_inner(inner, f"{place}[{i}]") for i, inner in enumerate(value)]
    return value


def _find(name: str, place: str) -> Any:
    """The class of a name: registered, Detectron2's, or ``module:Class``."""
    if ":" in name:
        return _find_in_module(name, place)
    if name in AUGMENTATION:
        return AUGMENTATION.get(name)
    detectron2 = {each: kind for each, kind in vars(T).items() if _is_augmentation(kind)}
    if name not in detectron2:
        known = sorted({*detectron2, *(each for each, _ in AUGMENTATION)})
        raise ConfigError(
            f"{place}: unknown augmentation {name!r}{did_you_mean(name, known)}; known are {known} and "
            f"'module:Class'. {IMPORTS_HINT}"
        )
    return detectron2[name]


def _find_in_module(name: str, place: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{place}: {name!r}: {error}. A module beside the config is found once IMPORTS names it."
        ) from error
    kind = getattr(module, class_name, None)
    if not _is_augmentation(kind):
        near = [each for each, value in vars(module).items() if _is_augmentation(value)]
        raise ConfigError(
            f"{place}: {module_name!r} has no augmentation {class_name!r}{did_you_mean(class_name, near)}; "
            "expected a class that derives from Detectron2's T.Augmentation or T.Transform"
        )
    return kind


def _is_augmentation(kind: Any) -> bool:
    # Not Transform itself and Augmentation, which do nothing.
    bases = (T.Augmentation, T.Transform)
    return isinstance(kind, type) and issubclass(kind, bases) and kind not in bases


class AugmentedPair(T.AugInput):
    """An image and its labels while they are augmented, and which of the labels are known.

    A transform moves ``known`` as it moves the labels: what it fills in is not 1 there.
    """

    def __init__(self, image: np.ndarray, sem_seg: np.ndarray) -> None:
        super().__init__(image, sem_seg=sem_seg)
        self.known = np.ones(sem_seg.shape, dtype=np.uint8)

    def transform(self, tfm: T.Transform) -> None:
        """Applies a transform to all three."""
        super().transform(tfm)
        self.known = tfm.apply_segmentation(self.known)


class PairAugmentations:
    """Applies augmentations one after the other.

    Args:
        augmentations: Detectron2's, or classes that derive from them.
        seed: seed of the run.
        part: number of this list among the lists of a sample.
        ignore_value: label of pixels whose class is not known.
    """

    def __init__(self, augmentations: Sequence[Any], *, seed: int, part: int, ignore_value: int) -> None:
        self.augmentations = list(augmentations)
        self.seed = seed
        self.part = part
        self.ignore_value = ignore_value

    def apply(
        self, image: np.ndarray, label: np.ndarray, sample_number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augments an RGB image ``(H, W, 3)`` of uint8 and its labels ``(H, W)`` of uint8 or int32.

        All that is drawn comes from (seed, part, sample number), and the sources of random numbers of this
        process are left as they were.

        Raises:
            ConfigError: an augmentation fails, or gives something else than a pair of one size.
        """
        if not self.augmentations:
            return image, label
        # OpenCV and Pillow do not move int32; float32 holds all classes exactly.
        moved = label if label.dtype == np.uint8 else label.astype(np.float32)
        pair = AugmentedPair(image, moved)
        with seeded((LIST_STREAM, self.seed, sample_number, self.part)):
            for augmentation in self.augmentations:
                self._apply_one(augmentation, pair)
        result = pair.sem_seg.astype(label.dtype)
        unknown = pair.known != 1
        if unknown.any():
            if not np.can_cast(np.min_scalar_type(self.ignore_value), result.dtype):
                result = result.astype(np.int32)
            result[unknown] = self.ignore_value
        return np.ascontiguousarray(pair.image), np.ascontiguousarray(result)

    @staticmethod
    def _apply_one(augmentation: Any, pair: AugmentedPair) -> None:
        name = type(augmentation).__name__
        try:
            if isinstance(augmentation, T.Transform):
                pair.transform(augmentation)
            else:
                augmentation(pair)
        except Exception as error:
            raise ConfigError(
                f"{KEY}: {name} failed on an image of {pair.image.shape[0]} x {pair.image.shape[1]} pixels "
                f"(height x width):\n{traceback.format_exc().rstrip()}"
            ) from error
        image, size = pair.image, pair.sem_seg.shape
        if image.dtype != np.uint8 or image.shape != (*size, 3) or pair.known.shape != size or not min(size):
            raise ConfigError(
                f"{KEY}: {name} gave an image of {image.dtype} {image.shape} and labels {size}; expected "
                "uint8 (height, width, 3) and (height, width)"
            )


@contextmanager
def seeded(words: Sequence[int]) -> Iterator[None]:
    """Seeds the global sources of random numbers of numpy, Python and torch, and puts them back behind."""
    seeds = np.random.SeedSequence(tuple(words)).generate_state(4)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    torch_state = torch.get_rng_state()
    try:
        np.random.seed(seeds)
        random.seed(seeds.tobytes())
        torch.default_generator.manual_seed(int(seeds[0]))
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
