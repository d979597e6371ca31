"""Pictures of predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from regseg_d2.drawing.colors import voc_color

VOID_COLOR = (0, 0, 0)


def class_colors(metadata: Any, num_classes: int) -> np.ndarray:
    """Returns one RGB colour a class, (K, 3) uint8.

    Args:
        metadata: a data set's metadata; its ``stuff_colors`` are taken where it has them.
        num_classes: K.
    """
    colors = metadata.get("stuff_colors", None)
    if colors is not None and len(colors) >= num_classes:
        return np.asarray(colors[:num_classes], dtype=np.uint8)
    return np.asarray([voc_color(i + 1) for i in range(num_classes)], dtype=np.uint8)


def color_label(label: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paints class ids (H, W) with their colours, as (H, W, 3) uint8 RGB; what is no class becomes black.

    Args:
        label: (H, W) integers.
        colors: (K, 3) uint8, RGB.
    """
    table = np.vstack([colors, np.asarray([VOID_COLOR], dtype=np.uint8)])
    label = np.asarray(label, dtype=np.int64)  # a uint8 cannot hold the number of black for many classes
    valid = (label >= 0) & (label < len(colors))
    return table[np.where(valid, label, len(colors))]
