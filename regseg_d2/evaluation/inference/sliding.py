"""Sliding windows over an image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, stack

from regseg_d2.evaluation.inference.maps import AveragedTiles, ScoreMaps


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side, as mmsegmentation places them.

    They are ``stride`` apart; the last one is moved back so that it ends with the side.

    Args:
        size: length of the side.
        window: length of a window; at most ``size`` of it is used.
        stride: distance of two windows.
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - window), 0) for index in range(count)]


def slide(
    network: Callable[[Tensor], list[ScoreMaps]],
    image: Tensor,
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    tile_batch: int,
) -> AveragedTiles:
    """Runs a network on overlapping windows; their logits are averaged where they overlap.

    A window that is larger than the image is cut to it, so an image within one window is treated whole.

    Args:
        network: from ``(N, 3, h, w)`` to the logits of each.
        image: ``(3, H, W)``.
        crop_size: height and width of a window.
        stride: rows and columns between windows.
        tile_batch: windows in one forward pass.

    Returns:
        The logits ``(K, H, W)``.
    """
    size = (image.shape[-2], image.shape[-1])
    height, width = (min(side, whole) for side, whole in zip(crop_size, size, strict=True))
    corners = [
        (top, left)
        for top in window_starts(size[0], crop_size[0], stride[0])
        for left in window_starts(size[1], crop_size[1], stride[1])
    ]
    tiles: list[ScoreMaps] = []
    for start in range(0, len(corners), tile_batch):
        batch = [
            image[:, top : top + height, left : left + width]
            for top, left in corners[start : start + tile_batch]
        ]
        tiles += network(stack(batch))
    return AveragedTiles(tiles, corners, size)
