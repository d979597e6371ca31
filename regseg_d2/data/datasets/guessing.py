"""How the names of images and of their labels end, guessed from what lies in their folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from regseg_d2.common.errors import printable
from regseg_d2.data.datasets.splits import files_by_stem, without_suffix

#: Endings that are tried first.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)
# Endings of files that can be an image or a label at all.
_KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")
# A guess has to explain this share of the labels, and at least two of them.
_SHARE = 0.9


def guess_suffixes(images: Path, labels: Path) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Guesses the suffixes of images and labels that pair the files of two folders.

    Names may differ in what stands behind a common stem: ``a.jpg`` and ``a_mask.png``, ``a_rgb.tif`` and
    ``a_class.tif``. The folders may be the same.

    Returns:
        Suffixes of images and of labels; None where the usual ones do, or no guess pairs nearly all labels.
    """
    same = os.path.realpath(images) == os.path.realpath(labels)
    if _usual_ones_pair(images, labels, same):
        return None
    image_names, label_names = _names(images), _names(labels)
    endings = sorted({_ending(name) for name in image_names})
    best: tuple[int, tuple[str, ...], tuple[str, ...]] = (0, (), ())
    # A name may end in more than its file type: in what all images have in common.
    for candidates in (endings, [_common_end(image_names)]):
        if not all("." in candidate for candidate in candidates):
            continue
        stems = {without_suffix(name, candidates) for name in image_names}
        remainders = Counter(
            remainder for name in label_names for remainder in _remainders(name, stems, same, candidates)
        )
        for remainder, count in remainders.most_common(1):
            if count > best[0]:
                best = count, tuple(candidates), (remainder,)
    count, image_suffixes, label_suffixes = best
    of_labels = sum(name.endswith(label_suffixes) for name in label_names) if label_suffixes else 0
    return (image_suffixes, label_suffixes) if count >= max(2, _SHARE * of_labels) else None


def describe_guess(images: Sequence[str], labels: Sequence[str]) -> str:
    """Says what was guessed, as the lines of a declaration that fix it."""
    lists = [f"[{', '.join(printable(suffix) for suffix in suffixes)}]" for suffixes in (images, labels)]
    return f"image_suffixes: {lists[0]}, label_suffixes: {lists[1]}"


def _usual_ones_pair(images: Path, labels: Path, same: bool) -> bool:
    """Whether the first label with a usual suffix has an image with one; without a walk over all files."""
    for folder, _, names in os.walk(labels, followlinks=True):
        label = next((name for name in sorted(names) if name.lower().endswith(LABEL_SUFFIXES)), None)
        if label is not None:
            below = images / os.path.relpath(folder, labels)
            stem = without_suffix(label, LABEL_SUFFIXES)
            there = os.listdir(below) if below.is_dir() else []
            return any(
                name != label or not same
                for name in there
                if name.lower().endswith(IMAGE_SUFFIXES) and without_suffix(name, IMAGE_SUFFIXES) == stem
            )
    return False


def _names(root: Path) -> list[str]:
    """Paths below a folder of all files that could be pictures."""
    return sorted(
        os.path.relpath(path, root).replace(os.sep, "/")
        for paths in files_by_stem(root, _KINDS).values()
        for path in paths
    )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]


def _common_end(names: Sequence[str]) -> str:
    """What all names end in, from the first character on that is neither letter nor digit."""
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]
    start = next((i for i, character in enumerate(end) if not character.isalnum() and character != "/"), None)
    return "" if start is None else end[start:]


def _remainders(name: str, stems: set[str], same: bool, image_suffixes: Sequence[str]) -> list[str]:
    """What may stand behind the stem of an image in the name of a label."""
    found = []
    for cut in range(len(name) - 1, 0, -1):
        remainder = name[cut:]
        if "/" in remainder:
            break
        is_image = same and remainder in image_suffixes
        if name[:cut] in stems and "." in remainder and not is_image:
            found.append(remainder)
    return found
