"""Scenes of the co-occurrence data set: one or two grounds with one to three objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from regseg_d2.data.datasets.cooccurrence import textures
from regseg_d2.data.datasets.cooccurrence.objects import DRAWINGS, Canvas
from regseg_d2.data.images import open_image

GROUNDS = ("grass", "sand", "water", "road")
# Ground on which each object stands in train and val.
OWN_GROUND = {
    "cow": "grass",
    "hen": "grass",
    "camel": "sand",
    "boat": "water",
    "duck": "water",
    "car": "road",
}
OBJECTS = tuple(OWN_GROUND)
CLASSES = GROUNDS + OBJECTS
COLORS = (
    (104, 159, 56),
    (225, 193, 110),
    (66, 133, 190),
    (128, 128, 128),
    (121, 65, 38),
    (216, 67, 21),
    (171, 71, 188),
    (0, 77, 129),
    (255, 235, 59),
    (211, 47, 47),
)
_TEXTURES = {"grass": textures.grass, "sand": textures.sand, "water": textures.water, "road": textures.road}
# Smallest and largest side of an object's canvas as a share of the image's ...
_OBJECT_SIZE = (0.44, 0.70)
# ... times a factor for one, two or three objects in the scene.
_CROWD = (1.0, 0.9, 0.75)


def draw_scene(rng: np.random.Generator, size: int, own_ground: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws an RGB image ``(size, size, 3)`` and its class indices ``(size, size)``, both uint8.

    ``own_ground`` is the probability that an object is one of those that belong to the ground it stands on.
    With 0 no object ever stands on, or before, its own ground.
    """
    ground, objects = _choose_content(rng, own_ground)
    behind = _choose_behind(rng, ground, objects, own_ground)
    image = _TEXTURES[ground](rng, (size, size))
    label = np.full((size, size), CLASSES.index(ground), dtype=np.uint8)
    horizon = 0
    if behind is not None:
        horizon = _draw_behind(rng, image, label, behind)
    for name, place in zip(objects, _places(rng, len(objects), size, horizon), strict=True):
        _draw_object(rng, image, label, name, place)
    light = rng.uniform(0.8, 1.15) + (np.linspace(-0.5, 0.5, size) * rng.uniform(-0.2, 0.2))[None, :, None]
    image = cv2.GaussianBlur((image * light).astype(np.float32), (3, 3), 0.6)
    image += rng.normal(0, 3, image.shape).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), label


def _choose_content(rng: np.random.Generator, own_ground: float) -> tuple[str, list[str]]:
    """Ground and objects: the ground is drawn so that the objects are about equally frequent."""
    owners = list(OWN_GROUND.values())
    ground = owners[rng.integers(len(owners))] if own_ground > 0 else GROUNDS[rng.integers(len(GROUNDS))]
    own = [name for name in OBJECTS if OWN_GROUND[name] == ground]
    other = [name for name in OBJECTS if OWN_GROUND[name] != ground]
    objects = []
    for _ in range(int(rng.integers(1, 4))):
        choices = own if rng.random() < own_ground else other
        objects.append(choices[rng.integers(len(choices))])
    return ground, objects


def _choose_behind(
    rng: np.random.Generator, ground: str, objects: list[str], own_ground: float
) -> str | None:
    """A second ground behind the first in half of the scenes, or None."""
    excluded = {ground} if own_ground > 0 else {ground, *(OWN_GROUND[name] for name in objects)}
    choices = [name for name in GROUNDS if name not in excluded]
    if rng.random() < 0.5 or not choices:
        return None
    return choices[rng.integers(len(choices))]


def _draw_behind(rng: np.random.Generator, image: np.ndarray, label: np.ndarray, ground: str) -> int:
    """Draws the second ground above a wavy line; returns the lowest row that it reaches."""
    size = label.shape[0]
    columns = np.arange(size)
    wave = np.sin(columns * rng.uniform(0.02, 0.08) + rng.uniform(0, 6.28)) * rng.uniform(1, 5)
    line = size * rng.uniform(0.15, 0.34) + wave + (columns - size / 2) * rng.uniform(-0.12, 0.12)
    above = columns[:, None] < line
    image[above] = _TEXTURES[ground](rng, (size, size))[above]
    label[above] = CLASSES.index(ground)
    return int(np.ceil(line.max()))


@dataclass(frozen=True)
class _Place:
    """Where an object stands: row of its feet, column of its middle, side of its canvas, in pixels."""

    feet: int
    middle: int
    side: int


def _places(rng: np.random.Generator, count: int, size: int, horizon: int) -> list[_Place]:
    """Places for ``count`` objects, far ones (which nearer ones may hide in part) first."""
    places = []
    for slot in rng.permutation(count):
        side = int(size * rng.uniform(*_OBJECT_SIZE) * _CROWD[count - 1])
        # At most a small part leaves the picture, or nobody could tell what stands there.
        lowest, highest = size - 2, max(horizon + side // 3, int(0.9 * side))
        feet = int(rng.integers(highest, lowest + 1))
        middle = int(size * ((slot + 0.5) / count + rng.uniform(-0.08, 0.08)))
        places.append(_Place(feet, int(np.clip(middle, 0.35 * side, size - 0.35 * side)), side))
    return sorted(places, key=lambda place: place.feet)


def _draw_object(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray, name: str, place: _Place
) -> None:
    """Draws one object and its shadow into image and label."""
    size = label.shape[0]
    canvas = DRAWINGS[name](rng, place.side)
    if rng.random() < 0.5:
        canvas.mask, canvas.pixels = canvas.mask[:, ::-1], canvas.pixels[:, ::-1]
    _turn(canvas, rng.uniform(-8, 8))
    source = np.nonzero(canvas.mask)
    rows = source[0] + place.feet - int(source[0].max())
    columns = source[1] + place.middle - place.side // 2
    _draw_shadow(image, label, place.feet, (int(columns.min()), int(columns.max())))
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    image[rows[inside], columns[inside]] = canvas.pixels[source[0][inside], source[1][inside]]
    label[rows[inside], columns[inside]] = CLASSES.index(name)


def _turn(canvas: Canvas, degrees: float) -> None:
    """Turns mask and pixels alike, by nearest neighbour, so that they stay aligned."""
    middle = (canvas.side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
    canvas.mask, canvas.pixels = (
        cv2.warpAffine(
            np.ascontiguousarray(array), matrix, (canvas.side, canvas.side), flags=cv2.INTER_NEAREST
        )
        for array in (canvas.mask, canvas.pixels)
    )


def _draw_shadow(image: np.ndarray, label: np.ndarray, feet: int, columns: tuple[int, int]) -> None:
    """Darkens the ground under an object; other objects and the labels stay as they are."""
    shadow = np.zeros(label.shape, dtype=np.uint8)
    middle = ((columns[0] + columns[1]) // 2, feet)
    width = max((columns[1] - columns[0]) // 2, 1)
    cv2.ellipse(shadow, middle, (width, max(width // 5, 1)), 0, 0, 360, 1, thickness=-1)
    image[(shadow > 0) & (label < len(GROUNDS))] *= 0.75


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
