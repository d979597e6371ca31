"""What the network sees in training: samples as the training loader makes them, drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image, ImageDraw

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.common.errors import check_key
from regseg_d2.config.files import load_config
from regseg_d2.data.checks import check_head
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.images import sample_pixels
from regseg_d2.data.loader import build_train_loader
from regseg_d2.data.resampling import resize_image, resize_label
from regseg_d2.drawing.overlay import (
    blend,
    draw_legend,
    fitting_text,
    legend_of,
    text_font,
    with_legend,
    write_picture,
)
from regseg_d2.drawing.pictures import class_colors

_COLUMNS = 4  # pairs of pictures in a row of a sheet, at most
_LONGER_SIDE = 384  # of a picture on a sheet
_CAPTION = 22


def draw_training_samples(config_file: str, opts: list[str], *, number: int, output: str) -> list[Path]:
    """Draws the first training samples of a config, as files or as one sheet.

    Equal seeds give equal pictures: SEED of the config, or 0 where it is below 0.

    Args:
        config_file: the config.
        opts: changes to it, keys and values in turn.
        number: samples to draw.
        output: a file that ends in ".png" for one sheet; else a folder, for a picture of each sample.

    Returns:
        The files that were written.

    Raises:
        UserError: a key, a value or a file of the data set cannot be used.
    """
    check_key("--num", number, number >= 1, "1 or more")
    cfg = load_config(config_file, opts)
    register_declared(cfg.DATASETS.DECLARED)
    samples = training_samples(cfg, number)
    first = cfg.DATASETS.TRAIN[0]
    names = list(MetadataCatalog.get(first).stuff_classes)
    colors = class_colors(MetadataCatalog.get(first), len(names))
    if output.lower().endswith(".png"):
        write_picture(output, draw_sheet(list(samples), names, colors))
        return [Path(output)]
    paths = []
    for i, (image_id, image, label) in enumerate(samples):
        path = Path(output) / f"{i:03d}_{_file_name(image_id)}.png"
        pair = np.concatenate([image, blend(image, label, colors)], axis=1)
        write_picture(path, with_legend(pair, legend_of(label, names, colors)))
        paths.append(path)
    return paths


def training_samples(cfg: CfgNode, number: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Makes the first samples of a run with the loader of training; its data sets are registered.

    Returns:
        ``image_id``, image (H, W, 3) uint8 in RGB, and label (H, W) of each, as the network gets them.

    Raises:
        ConfigError: a key cannot be used, or the head's classes are not those of the data.
        DatasetError: a data set cannot be loaded; while iterating: a file cannot be used.
    """
    loader = build_train_loader(cfg, seed=max(cfg.SEED, 0))
    for name in cfg.DATASETS.TRAIN:
        check_head(cfg, name)
    samples = itertools.chain.from_iterable(loader)
    return (_arrays(sample, cfg.INPUT.FORMAT) for sample in itertools.islice(samples, number))


def _arrays(sample: dict, image_format: str) -> tuple[str, np.ndarray, np.ndarray]:
    image = np.ascontiguousarray(sample_pixels(sample, image_format))
    return sample["image_id"], image, sample["sem_seg"].numpy()


def draw_sheet(
    samples: list[tuple[str, np.ndarray, np.ndarray]], names: list[str], colors: np.ndarray
) -> np.ndarray:
    """Draws samples on one sheet, each as image and overlay with its name, and one legend for all.

    The samples are as :func:`training_samples` makes them, at least one; the sheet is ``(H, W, 3)`` uint8,
    RGB.
    """
    pairs = []
    for _, image, label in samples:
        scale = min(_LONGER_SIDE / max(label.shape), 1)
        size = tuple(max(round(side * scale), 1) for side in label.shape)
        small = resize_image(image, size)
        pairs.append(np.concatenate([small, blend(small, resize_label(label, size), colors)], axis=1))
    height = max(pair.shape[0] for pair in pairs) + _CAPTION
    width = max(pair.shape[1] for pair in pairs) + 8
    columns = min(_COLUMNS, len(pairs))
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), text_font(12)
    for i, (pair, (image_id, image, _)) in enumerate(zip(pairs, samples, strict=True)):
        left, top = i % columns * width, i // columns * height
        caption = fitting_text(f"{image_id}  {image.shape[0]} x {image.shape[1]}", font, width - 8)
        draw.text((left + 2, top + _CAPTION / 2), caption, fill="black", font=font, anchor="lm")
        sheet.paste(Image.fromarray(pair), (left, top + _CAPTION))
    everything = np.concatenate([label.ravel() for _, _, label in samples])[None]
    picture = np.asarray(sheet)
    return np.concatenate([picture, draw_legend(legend_of(everything, names, colors), picture.shape[1])])


def _file_name(image_id: str) -> str:
    """A part of a file's name; ids may be paths."""
    return re.sub(r"[^\w.-]+", "_", image_id).strip("_")[-80:]
