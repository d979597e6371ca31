"""Which pixels and regions are looked at: the same ones whatever the network and the order of the images.

Each pixel of a label, and each class of an image, has a random key that follows from the seed and the image's
name. Of each class those with the lowest keys are kept: a sample of all its pixels in the data set, without
replacement, drawn in one pass.
"""

from __future__ import annotations

import hashlib

import numpy as np

from regseg_d2.evaluation.looking.views import View

# Marks a slot that nothing is in; no item with this key is kept.
_EMPTY = np.iinfo(np.uint64).max
_PIXELS, _REGIONS, _IMAGES = 0, 1, 2


def pixel_keys(seed: int, name: str, size: tuple[int, int]) -> np.ndarray:
    """Draws the keys ``(H, W)`` of an image's pixels, uint64.

    Args:
        seed: a negative one counts as 0.
        name: unique name of the image.
        size: height and width of its label.
    """
    return _draw(seed, _PIXELS, name, size[0] * size[1]).reshape(size)


def region_keys(seed: int, name: str, num_classes: int) -> np.ndarray:
    """Draws the keys ``(K,)`` of an image's classes, uint64; see :func:`pixel_keys`."""
    return _draw(seed, _REGIONS, name, num_classes)


def image_key(seed: int, name: str) -> int:
    """Draws the key of an image: those with the lowest ones are a sample of all."""
    return int(_draw(seed, _IMAGES, name, 1)[0])


def _draw(seed: int, purpose: int, name: str, length: int) -> np.ndarray:
    # A file's name may hold bytes that are no UTF-8.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    # The raw stream of a bit generator is the same in every version of NumPy; that of a Generator is not.
    return np.random.PCG64(np.random.SeedSequence([max(seed, 0), purpose, *words])).random_raw(length)


class ClassSample:
    """The items of each class that have the lowest keys; memory does not grow with the items seen.

    Args:
        num_classes: K.
        most: items of a class that are kept, at most.
    """

    def __init__(self, num_classes: int, most: int) -> None:
        self._keys = np.full((num_classes, most), _EMPTY)
        self._columns: dict[str, np.ndarray] = {}

    def choose(self, classes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes in new items, and drops those whose keys are no longer among the lowest.

        Args:
            classes: ``(M,)`` classes of the items, 0 to K - 1.
            keys: ``(M,)`` uint64.

        Returns:
            Which of the new items are kept, ``(n,)`` numbers from 0 to M - 1, and the slots ``(n,)`` in which
            :meth:`store` has to write what is known of them.
        """
        most = self._keys.shape[1]
        near = np.flatnonzero(keys < self._keys.max(axis=1)[classes])
        classes, keys = classes[near], keys[near]
        order, ranks = _ranks(classes, keys)
        first = order[ranks < most]
        near, classes, keys = near[first], classes[first], keys[first]
        # Those that are kept already, of the classes in question, stand before the new ones.
        rows = np.unique(classes)
        slots = (rows[:, None] * most + np.arange(most)).ravel()
        order, ranks = _ranks(
            np.concatenate([slots // most, classes]), np.concatenate([self._keys[rows].ravel(), keys])
        )
        is_old, is_kept = order < len(slots), ranks < most
        # Both in the order of classes, and of a class as many as the other: one's place is for the other.
        freed, winners = slots[order[is_old & ~is_kept]], order[~is_old & is_kept] - len(slots)
        self._keys.ravel()[freed] = keys[winners]
        return near[winners], freed

    def store(self, slots: np.ndarray, **values: np.ndarray) -> None:
        """Writes what is known of items.

        Args:
            slots: ``(n,)`` from :meth:`choose`.
            values: ``(n, ...)`` by name; always the same names, types and shapes.
        """
        for name, column in values.items():
            if name not in self._columns:
                self._columns[name] = np.zeros((self._keys.size, *column.shape[1:]), column.dtype)
            self._columns[name][slots] = column

    def kept(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the classes ``(P,)`` of all items that are kept, and what is known of them by name.

        They are sorted by class, and within a class by key: the first so many of a class are a sample, too.
        """
        order = np.argsort(self._keys, axis=1, kind="stable")
        is_kept = np.take_along_axis(self._keys, order, axis=1) != _EMPTY
        classes = is_kept.nonzero()[0]
        slots = (order + np.arange(len(order))[:, None] * order.shape[1])[is_kept]
        return classes, {name: column[slots] for name, column in self._columns.items()}


def region_features(view: View, label: np.ndarray, feature: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean features of classes in an image, over their pixels: a pixel has the feature of its cell.

    Args:
        view: the image.
        label: its label ``(H, W)``.
        feature: its feature ``(C, h, w)``.
        classes: ``(n,)``, each in the label.

    Returns:
        ``(n, C)`` float32.
    """
    rows, columns = view.cell_of(np.arange(view.size[0]), np.arange(view.size[1]))
    cells = rows[:, None] * feature.shape[2] + columns
    numbers = np.full(view.num_classes + 1, -1)  # void, -1, is the last one
    numbers[classes] = np.arange(len(classes))
    number = numbers[label]
    inside = number >= 0
    num_cells = feature.shape[1] * feature.shape[2]
    pixels = np.bincount(number[inside] * num_cells + cells[inside], minlength=len(classes) * num_cells)
    weights = pixels.reshape(len(classes), num_cells).astype(np.float32)
    sums = weights @ feature.reshape(len(feature), -1).T
    return sums / weights.sum(axis=1, keepdims=True)


def even_subset(classes: np.ndarray, most: int) -> np.ndarray:
    """Chooses the first items of each class, so that classes have as many as each other where they can.

    Args:
        classes: ``(P,)`` classes of items, 0 or more.
        most: items to choose, at most; the number of a class is the largest with which all fit.

    Returns:
        ``(n,)`` item numbers, ascending.
    """
    order, ranks = _ranks(classes, np.arange(len(classes)))
    sizes = np.cumsum(np.bincount(ranks, minlength=1))  # items of rank r or less
    each = int(np.searchsorted(sizes, most, side="right"))
    return np.sort(order[ranks < each])


def _ranks(classes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts items by class, then key: item numbers, and each one's place within its class."""
    order = np.argsort(keys)  # only empty slots have equal keys
    # Small integers are sorted by radix.
    order = order[np.argsort(classes[order].astype(np.uint16), kind="stable")]
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    return order, np.arange(len(order)) - np.repeat(starts, counts)
