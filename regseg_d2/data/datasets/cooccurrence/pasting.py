"""The training scenes with their objects pasted into each other: they then stand on any ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regseg_d2.data.datasets.cooccurrence.scenes import GROUNDS
from regseg_d2.data.images import open_image


def paste_objects(
    image: np.ndarray, label: np.ndarray, donor_image: np.ndarray, donor_label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes all objects of one scene into another one of the same size, at the same place.

    Images are ``(H, W, 3)``, labels ``(H, W)``; new ones are returned.
    """
    objects = donor_label >= len(GROUNDS)
    return np.where(objects[..., None], donor_image, image), np.where(objects, donor_label, label)


def pasted_scenes(train: Path, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gives each scene of a training split the objects of another one; the seed draws which.

    Nothing but the training split is used: this is a data augmentation, drawn once.

    The split's folder has ``images/*.jpg`` and ``labels/*.png``; the scenes stay in its order.
    """
    names = sorted(path.stem for path in (train / "images").iterdir())
    scenes = [
        (
            np.asarray(open_image(train / "images" / f"{name}.jpg", "image")),
            np.asarray(open_image(train / "labels" / f"{name}.png", "label")),
        )
        for name in names
    ]
    rng = np.random.default_rng((seed, len(names)))
    # A shift of a random order: nobody is his own donor.
    order = rng.permutation(len(names))
    donors = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [paste_objects(*scene, *scenes[donors[i]]) for i, scene in enumerate(scenes)]
