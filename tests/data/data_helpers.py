"""Toy data sets on disk, registered for the length of a test."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.config import get_regseg_cfg
from regseg_d2.data.datasets import DatasetSpec
from regseg_d2.dataset_tools.inspection.collect import collect_facts
from tests.data.declarations import declared

CLASSES = ("sky", "ground", "thing")
COLORS = ((0, 0, 200), (90, 60, 30), (250, 0, 0))


def write_toy(root: Path, count: int = 6, size=(20, 30), seed: int = 0, num_classes: int = 3) -> Path:
    """Writes ``images/*.png`` and ``labels/*.png`` with random pixels and blocks of labels."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        blocks = rng.integers(0, num_classes, (4, 5), dtype=np.uint8)
        label = np.kron(blocks, np.ones((-(-size[0] // 4), -(-size[1] // 5)), dtype=np.uint8))
        label = label[: size[0], : size[1]].copy()
        label[0, :4] = 255
        Image.fromarray(image).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(label).save(root / "labels" / f"{i:03d}.png")
    return root


def toy_spec(root: Path, name: str = "toy", **changes) -> DatasetSpec:
    fields = {
        "name": name,
        "image_root": str(root / "images"),
        "label_root": str(root / "labels"),
        "classes": CLASSES,
        "colors": COLORS,
    }
    return DatasetSpec(**{**fields, **changes})


@contextmanager
def registered(*specs: DatasetSpec):
    """Registers data sets and takes them out of the catalogs again."""
    with declared():
        for one in specs:
            one.register()
        yield


def toy_cfg(train=("toy",), test=(), **overrides):
    """Config for the toy data; overrides are dotted keys with ``__`` for the dots."""
    cfg = get_regseg_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(CLASSES)
    cfg.INPUT.CROP.SIZE = [16, 24]
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in overrides.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def write_pair(root, name, label, seed=0, image_size=None):
    """Writes a random image and the given label."""
    label = np.asarray(label)
    size = image_size or label.shape
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    for folder, pixels in (("images", image), ("labels", label.astype(np.uint8))):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{name}.png")


def facts_of(spec, **options):
    """What the checker finds in one data set."""
    with registered(spec):
        (facts,) = collect_facts([spec.name], **options)
    return facts
