"""From anything that is an image to its pixels; what is none is an error that says what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.images import check_format, pixels_of, read_image

#: One image. Arrays are (H, W, 3) or, grey, (H, W) of uint8; tensors (3, H, W) or (1, H, W) of uint8.
ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_KINDS = "a path, a Pillow image, a NumPy array, a tensor, or a list of these"


def is_batch(images: object) -> bool:
    """Whether something is several images: a list or tuple, an array (N, H, W, 3), a tensor (N, 3, H, W)."""
    return isinstance(images, (list, tuple)) or (
        isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
    )


def rgb_pixels(image: ImageSource, channels: str = "RGB") -> np.ndarray:
    """Returns the pixels of an image, which nobody else holds.

    Args:
        image: see ``ImageSource``. Files and Pillow images are turned as EXIF says, grey ones become three
            equal channels, an alpha channel is dropped.
        channels: order of the channels of an array or tensor, ``"RGB"`` or, as OpenCV gives them, ``"BGR"``.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DatasetError: it cannot be read, or is no such image.
        ConfigError: ``channels`` is no order of channels.
    """
    check_format(channels)
    if isinstance(image, (np.ndarray, Tensor)):
        pixels = _of_tensor(image) if isinstance(image, Tensor) else _of_array(image)
        return np.array(pixels[:, :, ::-1] if channels == "BGR" else pixels, order="C")
    if channels != "RGB":
        raise DatasetError(
            f"channels is {channels!r}, and the image is a {type(image).__name__}, whose channels are known: "
            "it is for arrays and tensors."
        )
    if isinstance(image, Image.Image):
        return pixels_of(image, getattr(image, "filename", "") or "given as a Pillow image")
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    raise DatasetError(f"An image is a {type(image).__name__}; expected {_KINDS}.")


def file_of(image: ImageSource) -> str:
    """The file that an image is in; "" where that is not known."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return str(getattr(image, "filename", ""))


def _of_array(image: np.ndarray) -> np.ndarray:
    shape = image.shape
    _check_type(
        "array", shape, image.dtype == np.uint8, image.dtype, "(image * 255).round().astype(np.uint8)"
    )
    if image.ndim == 2 or (image.ndim == 3 and shape[2] == 1):
        image = np.broadcast_to(image.reshape(*shape[:2], 1), (*shape[:2], 3))
    elif image.ndim != 3 or shape[2] != 3:
        cures = {4: "drop the alpha channel, image[..., :3]"} if image.ndim == 3 else {}
        cure = cures.get(shape[-1] if shape else 0, "")
        if image.ndim == 3 and shape[0] in (1, 3):
            cure = "put the channels last, image.transpose(1, 2, 0)"
        _refuse_shape("array", shape, "(H, W, 3), or (H, W) for grey", cure)
    _check_size("array", shape, image.shape[:2])
    return image


def _of_tensor(image: Tensor) -> np.ndarray:
    shape = tuple(image.shape)
    _check_type("tensor", shape, image.dtype == torch.uint8, image.dtype, "(image * 255).round().byte()")
    if image.ndim != 3 or shape[0] not in (1, 3):
        cure = "put the channels first, image.permute(2, 0, 1)" if shape[2:] in ((1,), (3,)) else ""
        _refuse_shape("tensor", shape, "(3, H, W), or (1, H, W) for grey", cure)
    _check_size("tensor", shape, shape[1:])
    return image.detach().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()


def _check_type(kind: str, shape: Sequence[int], fine: bool, dtype: object, cure: str) -> None:
    if not fine:
        raise DatasetError(
            f"An image is a {kind} {tuple(shape)} of {dtype}; expected uint8, 0 to 255, before any "
            f"normalization. Of values from 0 to 1 make {cure}; of 16 bits take the high byte, image >> 8."
        )


def _refuse_shape(kind: str, shape: Sequence[int], expected: str, cure: str) -> None:
    raise DatasetError(
        f"An image is a {kind} {tuple(shape)}; expected {expected}" + (cure and f": {cure}") + "."
    )


def _check_size(kind: str, shape: Sequence[int], size: Sequence[int]) -> None:
    if min(size) < 1:
        raise DatasetError(f"An image is a {kind} {tuple(shape)}, which has no pixel.")
