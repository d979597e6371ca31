"""Textures of grounds and bodies, from noise at several scales."""

from __future__ import annotations

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Noise of float32 that changes over about ``cell`` pixels, with mean about 0 and deviation about 1."""
    coarse = (max(int(size[0] / cell[0]), 1) + 3, max(int(size[1] / cell[1]), 1) + 3)
    grid = rng.standard_normal(coarse, dtype=np.float32)
    large = cv2.resize(grid, (size[1] + 8, size[0] + 8), interpolation=cv2.INTER_CUBIC)
    return large[4:-4, 4:-4] * np.float32(1.2)


def grass(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Green with upright blades and patches; RGB float ``(H, W, 3)``."""
    blades = smooth_noise(rng, size, (5, 1.2)) * 16 + smooth_noise(rng, size, (2, 1)) * 9
    patches = smooth_noise(rng, size, (24, 30))
    base = np.array([86, 138, 56]) + rng.normal(0, 9, 3)
    texture = base + blades[:, :, None] * [0.9, 1.1, 0.6] + patches[:, :, None] * [12, 6, 2]
    flowers = rng.random(size) < rng.uniform(0, 0.004)
    texture[flowers] = [235, 225, 120]
    return texture


def sand(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Yellowish grain with wind ripples; RGB float ``(H, W, 3)``."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    bend = smooth_noise(rng, size, (30, 30)) * 3
    ripples = np.sin((rows + columns * rng.uniform(-0.5, 0.5) + bend) * rng.uniform(0.45, 0.8))
    grain = smooth_noise(rng, size, (1, 1)) * 8
    dunes = smooth_noise(rng, size, (34, 50)) * 9
    base = np.array([206, 176, 122]) + rng.normal(0, 9, 3)
    return base + (ripples * 7 + grain + dunes)[:, :, None] * [1.0, 0.95, 0.8]


def water(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Blue with lying waves and glints; RGB float ``(H, W, 3)``."""
    rows = np.arange(size[0], dtype=np.float32)[:, None]
    waves = smooth_noise(rng, size, (2.5, 14)) * 14 + smooth_noise(rng, size, (6, 30)) * 10
    depth = (rows / size[0] - 0.5) * rng.uniform(-24, 24)
    base = np.array([58, 112, 158]) + rng.normal(0, 10, 3)
    texture = base + (waves + depth)[:, :, None] * [0.8, 1.0, 1.0]
    texture[waves > rng.uniform(30, 38)] = [205, 222, 232]
    return texture


def road(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Grey grain with stains, and often a dashed line; RGB float ``(H, W, 3)``."""
    height, width = size
    grain = smooth_noise(rng, size, (1, 1)) * 10
    stains = smooth_noise(rng, size, (20, 40)) * 7
    base = np.array([112, 112, 116]) + rng.normal(0, 10) + rng.normal(0, 3, 3)
    texture = base + (grain + stains)[:, :, None]
    if rng.random() < 0.75:
        columns = np.arange(width)
        line = height * rng.uniform(0.35, 0.9) + (columns - width / 2) * rng.uniform(-0.15, 0.15)
        dashes = (columns + rng.integers(40)) % 40 < 24
        on_line = (np.abs(np.arange(height)[:, None] - line) < rng.uniform(1.0, 2.2)) & dashes
        texture[on_line] = np.array([218, 216, 205]) + grain[on_line][:, None]
    return texture


def coat(rng: np.random.Generator, size: tuple[int, int], palette: np.ndarray, spotted: float) -> np.ndarray:
    """Fur or feathers: one colour of a palette ``(N, 3)``, or spots of another on it; float ``(H, W, 3)``."""
    first, second = palette[rng.integers(len(palette), size=2)] + rng.normal(0, 10, (2, 3))
    texture = np.broadcast_to(first, (*size, 3)).copy()
    if rng.random() < spotted:
        texture[smooth_noise(rng, size, (10, 10)) > rng.uniform(0, 0.8)] = second
    hair = smooth_noise(rng, size, (2, 3)) * 9 + smooth_noise(rng, size, (1, 1)) * 5
    return texture + hair[:, :, None]


def paint(rng: np.random.Generator, size: tuple[int, int], palette: np.ndarray) -> np.ndarray:
    """Painted metal or wood: one colour with a sheen and now and then a stripe; RGB float ``(H, W, 3)``."""
    first, second = palette[rng.integers(len(palette), size=2)] + rng.normal(0, 10, (2, 3))
    texture = np.broadcast_to(first, (*size, 3)).copy()
    if rng.random() < 0.4:
        middle, half = size[0] * rng.uniform(0.5, 0.75), size[0] * 0.03
        texture[int(middle - half) : int(middle + half) + 1] = second
    sheen = np.linspace(18, -18, size[0])[:, None] + smooth_noise(rng, size, (8, 12)) * 4
    return texture + (sheen + smooth_noise(rng, size, (1, 1)) * 3)[:, :, None]
