"""From a record to a sample: images and labels are read once, here, and augmented alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T  # noqa: N812 (the name that Detectron2 itself uses)

from regseg_d2.common.errors import ConfigError, DatasetError, check_key
from regseg_d2.data.augmentation_list import KEY as AUGMENTATIONS_KEY
from regseg_d2.data.augmentation_list import PairAugmentations, build_augmentations
from regseg_d2.data.class_masks import class_masks
from regseg_d2.data.images import check_format, read_image
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.data.resampling import nearest_indices, resize_crop, resize_image, scaled_size, take_nearest
from regseg_d2.data.sampler import sample_generator
from regseg_d2.data.transforms import (
    FLIPS,
    ColorJitter,
    RandomCrop,
    RandomScale,
    WantedClass,
    to_planes,
    to_target,
)


def read_pair(record: dict, reader: LabelReader) -> tuple[np.ndarray, np.ndarray]:
    """Reads a record's RGB image ``(H, W, 3)`` of uint8 and its labels ``(H, W)`` of int32.

    Raises:
        DatasetError: a file cannot be used, or the two are of different size.
    """
    image = read_image(record["file_name"])
    label = reader(record["sem_seg_file_name"])
    _check_sizes(record, image, label)
    return image, label


def _check_sizes(record: dict, image: np.ndarray, label: np.ndarray) -> None:
    if image.shape[:2] != label.shape:
        raise DatasetError(
            f"The image {record['file_name']} has {image.shape[0]} x {image.shape[1]} pixels (height x "
            f"width), but its label {record['sem_seg_file_name']} has {label.shape[0]} x {label.shape[1]}. "
            "They must be equal (after both are turned as their EXIF orientation says); export the label "
            "again at the image's size."
        )


class TrainMapper:
    """Reads a record and augments it: scale, crop, colour jitter, padding, flip, and what a config lists.

    All randomness comes from (seed, sample number), so a sample is the same whoever makes it.

    Args:
        label_readers: label reader of each data set, by its name.
        seed: seed of the run.
        scale: random scale factor.
        crop: random crop; None keeps the whole scaled image.
        jitter: colour jitter of the crop, before padding.
        flip: how half of the samples are mirrored, ``"horizontal"`` or ``"vertical"``; ``"none"``: none is.
        pad_value: pixel, in ``image_format``, that fills images smaller than the crop.
        ignore_value: label of those pixels.
        image_format: "RGB" or "BGR".
        augmentations: augmentations of the whole image before the scale, and of the crop before the padding;
            the latter make nothing larger than the crop.
        with_class_masks: a sample has ``instances``, too, as :func:`~regseg_d2.data.class_masks.class_masks`
            makes them.
    """

    @configurable
    def __init__(
        self,
        *,
        label_readers: Mapping[str, LabelReader],
        seed: int,
        scale: RandomScale,
        crop: RandomCrop | None,
        jitter: ColorJitter,
        flip: str,
        pad_value: Sequence[float],
        ignore_value: int = 255,
        image_format: str = "RGB",
        augmentations: tuple[Sequence[Any], Sequence[Any]] = ((), ()),
        with_class_masks: bool = False,
    ) -> None:
        self.label_readers = dict(label_readers)
        self.seed = seed
        self.scale = scale
        self.crop = crop
        self.jitter = jitter
        self.flip = flip
        self.pad_value = np.round(pad_value).clip(0, 255).astype(np.uint8)
        self.ignore_value = ignore_value
        self.image_format = image_format
        self.with_class_masks = with_class_masks
        self.before_crop, self.on_crop = (
            PairAugmentations(part, seed=seed, part=number, ignore_value=ignore_value)
            for number, part in enumerate(augmentations)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, *, seed: int) -> dict:
        """Takes the arguments from ``cfg`` and the metadata of ``DATASETS.TRAIN``.

        Raises:
            ConfigError: a key under ``INPUT`` has a value that is not supported.
        """
        check_format(cfg.INPUT.FORMAT)
        flip, scales = cfg.INPUT.RANDOM_FLIP, list(cfg.INPUT.SCALE_RANGE)
        check_key("INPUT.RANDOM_FLIP", flip, flip in FLIPS, f"one of {FLIPS}")
        check_key("INPUT.SCALE_RANGE", scales, len(scales) == 2, "[smallest, largest]")
        ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        amounts = cfg.INPUT.COLOR_JITTER
        return {
            "label_readers": {name: label_reader_for(name) for name in cfg.DATASETS.TRAIN},
            "seed": seed,
            "scale": RandomScale(scales[0], scales[1], cfg.INPUT.SCALE_STEP),
            "crop": _crop_from_config(cfg, ignore_value),
            "jitter": ColorJitter(
                amounts.BRIGHTNESS, amounts.CONTRAST, amounts.SATURATION, amounts.HUE, amounts.PROBABILITY
            ),
            "flip": flip,
            "pad_value": cfg.MODEL.PIXEL_MEAN,
            "ignore_value": ignore_value,
            "image_format": cfg.INPUT.FORMAT,
            "augmentations": build_augmentations(cfg.INPUT.AUGMENTATIONS),
            "with_class_masks": cfg.INPUT.CLASS_MASKS,
        }

    def __call__(self, record: dict, sample_number: int, wanted: WantedClass | None = None) -> dict:
        """Makes one training sample.

        Args:
            record: with ``file_name``, ``sem_seg_file_name``, ``image_id`` and ``dataset_name``.
            sample_number: number of the sample in the run.
            wanted: a class that the crop should show.

        Returns:
            ``image`` uint8 tensor ``(3, H, W)``, ``sem_seg`` int64 tensor ``(H, W)``, the image's own
            ``height`` and ``width``, and the record's names; ``with_class_masks`` also ``instances``, the
            masks of the classes in ``sem_seg``.

        Raises:
            DatasetError: a file cannot be used, or image and label differ in size.
            ConfigError: an augmentation of the list fails.
        """
        rng = sample_generator(self.seed, sample_number)
        image = read_image(record["file_name"])
        label = self.label_readers[record["dataset_name"]].compact(record["sem_seg_file_name"])
        _check_sizes(record, image, label)
        own_size = label.shape
        image, label = self.before_crop.apply(image, label, sample_number)
        height, width = label.shape

        # Nearest neighbour makes the label of a crop exact, and it is made first: whether the crop is
        # kept depends on it. Of the image only the crop that is kept is resized.
        size = scaled_size(height, width, self.scale.draw(rng))
        rows, columns = nearest_indices(height, size[0]), nearest_indices(width, size[1])
        if self.crop is None:
            window, label = (slice(0, size[0]), slice(0, size[1])), take_nearest(label, rows, columns)
        else:
            window, label = self.crop.draw(rng, label, rows, columns, wanted)
        image = self.jitter.apply(resize_crop(image, size, window), rng)
        image, label = self.on_crop.apply(image, label, sample_number)
        mirrored = self.flip if self.flip != "none" and rng.random() < 0.5 else "none"
        padded = None if self.crop is None else self.crop.size
        if padded is not None and (label.shape[0] > padded[0] or label.shape[1] > padded[1]):
            raise ConfigError(
                f"{AUGMENTATIONS_KEY}: what comes behind CROP made {list(label.shape)} pixels of a crop of "
                f"{list(padded)} (height, width); put what enlarges before it"
            )
        planes = to_planes(image, padded, self.pad_value, mirrored=mirrored, bgr=self.image_format == "BGR")
        target = torch.from_numpy(to_target(label, padded, self.ignore_value, mirrored=mirrored))
        sample = {
            "image": torch.from_numpy(planes),
            "sem_seg": target,
            "file_name": record["file_name"],
            "sem_seg_file_name": record["sem_seg_file_name"],
            "image_id": record["image_id"],
            "height": own_size[0],
            "width": own_size[1],
        }
        if self.with_class_masks:
            sample["instances"] = class_masks(target, self.ignore_value)
        return sample


def _crop_from_config(cfg: CfgNode, ignore_value: int) -> RandomCrop | None:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return None
    known = "'absolute', a crop of INPUT.CROP.SIZE pixels"
    check_key("INPUT.CROP.TYPE", crop.TYPE, crop.TYPE == "absolute", known)
    return RandomCrop(tuple(crop.SIZE), crop.SINGLE_CATEGORY_MAX_AREA, ignore_value)


class TestMapper:
    """Reads a record's image for inference; the evaluator reads the label.

    Args:
        min_size: shorter side after resizing; 0 keeps the image's own size.
        max_size: largest longer side after resizing.
        image_format: "RGB" or "BGR".

    Raises:
        ConfigError: ``image_format`` is neither.
    """

    # Its name begins like a test's; pytest must not collect it.
    __test__ = False

    @configurable
    def __init__(self, *, min_size: int = 0, max_size: int = 4096, image_format: str = "RGB") -> None:
        check_format(image_format)
        self.min_size = min_size
        self.max_size = max_size
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Takes the arguments from ``cfg.INPUT``."""
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, record: dict) -> dict:
        """Makes one test sample.

        Returns:
            ``image`` uint8 tensor ``(3, H, W)``, the image's own ``height`` and ``width``, and the
            record's names.

        Raises:
            DatasetError: the image cannot be used.
        """
        return {
            **self.of_pixels(read_image(record["file_name"])),
            "file_name": record["file_name"],
            "sem_seg_file_name": record["sem_seg_file_name"],
            "image_id": record["image_id"],
        }

    def of_pixels(self, pixels: np.ndarray) -> dict:
        """Makes what of a test sample comes from the image: ``image``, ``height`` and ``width``.

        Args:
            pixels: (H, W, 3) uint8, RGB.
        """
        height, width = pixels.shape[:2]
        image = pixels if self.image_format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])
        if self.min_size > 0:
            size = T.ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
            image = resize_image(image, size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "height": height,
            "width": width,
        }
