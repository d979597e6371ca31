"""Augmentations against slow references and known values."""

import colorsys

import numpy as np
import pytest

from regseg_d2.data.transforms import (
    ColorJitter,
    RandomCrop,
    RandomScale,
    adjust_colors,
    nearest_indices,
    pad_to,
    resize_image,
    resize_label,
    scaled_size,
)
from regseg_d2.errors import ConfigError


def _slow_nearest(label: np.ndarray, size) -> np.ndarray:
    """The source pixel that holds each target pixel's middle, in exact fractions."""
    from fractions import Fraction
    from math import floor

    height, width = label.shape
    out = np.empty(size, dtype=label.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            source_y = floor((y + Fraction(1, 2)) * Fraction(height, size[0]))
            source_x = floor((x + Fraction(1, 2)) * Fraction(width, size[1]))
            out[y, x] = label[source_y, source_x]
    return out


@pytest.mark.parametrize("size", [(5, 9), (10, 18), (13, 7), (1, 1), (4, 40)])
def test_label_resize_equals_a_slow_loop(size):
    label = np.random.default_rng(0).integers(0, 200, (5, 9)).astype(np.int32)
    resized = resize_label(label, size)
    assert resized.dtype == np.int32
    np.testing.assert_array_equal(resized, _slow_nearest(label, size))


@pytest.mark.parametrize("old", [1, 2, 7, 480])
@pytest.mark.parametrize("new", [1, 3, 7, 480, 961])
def test_nearest_indices_stay_inside_and_ascend(old, new):
    indices = nearest_indices(old, new)
    assert indices[0] >= 0 and indices[-1] < old and (np.diff(indices) >= 0).all()
    # Mirror symmetry holds wherever no target's middle falls between two source pixels.
    between = ((2 * np.arange(new) + 1) * old) % (2 * new) == 0
    np.testing.assert_array_equal(indices[~between], (old - 1 - indices[::-1])[~between])


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.6, 2.0])
def test_image_and_label_stay_aligned(factor):
    """A step between two halves lies at the same place in the resized image and label."""
    label = np.zeros((40, 64), dtype=np.int32)
    label[:, 24:] = 1
    image = np.repeat((label * 200).astype(np.uint8)[:, :, None], 3, axis=2)
    size = scaled_size(40, 64, factor)
    np.testing.assert_array_equal(resize_image(image, size)[:, :, 0] > 100, resize_label(label, size) == 1)


def test_shrinking_takes_means():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    means = image.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image, (4, 4)) - means).max() <= 0.5


def test_same_size_is_left_alone():
    image = np.zeros((3, 4, 3), dtype=np.uint8)
    assert resize_image(image, (3, 4)) is image


def test_scaled_size_rounds():
    assert scaled_size(360, 480, 0.75) == (270, 360)
    assert scaled_size(3, 5, 0.5) == (2, 3)
    assert scaled_size(3, 5, 0.01) == (1, 1)


def test_scale_range_and_steps():
    rng = np.random.default_rng(0)
    free = np.array([RandomScale(0.5, 2.0).draw(rng) for _ in range(2000)])
    assert 0.5 <= free.min() < 0.51 and 1.99 < free.max() <= 2.0
    assert abs(free.mean() - 1.25) < 0.03
    stepped = [RandomScale(0.5, 2.0, 0.25).draw(rng) for _ in range(500)]
    assert sorted(set(np.round(stepped, 6))) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    tenths = {round(RandomScale(0.5, 0.8, 0.1).draw(rng), 6) for _ in range(200)}
    assert tenths == {0.5, 0.6, 0.7, 0.8}


@pytest.mark.parametrize("values", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 2.0, -0.1)])
def test_impossible_scales(values):
    with pytest.raises(ConfigError, match="INPUT.SCALE_"):
        RandomScale(*values)


def _slow_crop(rng, label, size, share, ignore):
    """The rule as a loop: at most ten draws, the last one taken as it is."""
    for _ in range(10):
        top = int(rng.integers(label.shape[0] - size[0] + 1))
        left = int(rng.integers(label.shape[1] - size[1] + 1))
        counts = {}
        for row in label[top : top + size[0], left : left + size[1]]:
            for value in row:
                if value != ignore:
                    counts[int(value)] = counts.get(int(value), 0) + 1
        if share == 1 or (counts and max(counts.values()) <= share * sum(counts.values())):
            break
    return top, left


@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
def test_crop_equals_a_slow_loop(share):
    label = np.random.default_rng(5).integers(0, 3, (6, 6)).repeat(5, 0).repeat(5, 1)
    label[:9, :15] = 255
    crop = RandomCrop((8, 8), share)
    tries = []
    for seed in range(60):
        rows, columns = crop.draw(np.random.default_rng(seed), label, np.arange(30), np.arange(30))
        expected = _slow_crop(np.random.default_rng(seed), label, (8, 8), share, 255)
        assert (rows.start, columns.start) == expected
        assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 8)
        tries.append(expected)
    assert len(set(tries)) > 30


def test_capped_crops_are_mixed_where_possible():
    label = np.zeros((20, 40), dtype=np.int32)
    label[:, 20:] = 1
    shares = []
    for seed in range(200):
        window = RandomCrop((10, 10), 0.75).draw(
            np.random.default_rng(seed), label, np.arange(20), np.arange(40)
        )
        shares.append(max(np.mean(label[window] == 0), np.mean(label[window] == 1)))
    # A single draw is pure or nearly so in 4 of 5 cases, ten in a row in about 1 of 7.
    assert np.mean(np.array(shares) <= 0.75) > 0.75


def test_crop_larger_than_the_image():
    label = np.zeros((5, 40), dtype=np.int32)
    rows, columns = RandomCrop((10, 10), 0.5).draw(
        np.random.default_rng(0), label, np.arange(5), np.arange(40)
    )
    assert rows == slice(0, 5) and columns.stop - columns.start == 10


@pytest.mark.parametrize(
    "size, share", [((0, 4), 0.5), ((4,), 0.5), ((4, 4), 0.0), ((4, 4), 1.5), ((4, 0.5), 1.0)]
)
def test_impossible_crops(size, share):
    with pytest.raises(ConfigError, match="INPUT.CROP"):
        RandomCrop(size, share)


def _slow_adjust(pixel, mean, brightness, contrast, saturation):
    def luminance(color):
        return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]

    color = [brightness * part for part in pixel]
    color = [mean + contrast * (part - mean) for part in color]
    grey = luminance(color)
    return [grey + saturation * (part - grey) for part in color]


@pytest.mark.parametrize("factors", [(1.3, 1, 1), (1, 0.6, 1), (1, 1, 1.4), (0.8, 1.2, 0.5)])
def test_colours_equal_a_slow_loop(factors):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    mean = factors[0] * np.mean(image.astype(float) @ [0.299, 0.587, 0.114])
    expected = [[_slow_adjust(pixel, mean, *factors) for pixel in row] for row in image.astype(float)]
    adjusted = adjust_colors(image, *factors, 0.0)
    assert np.abs(adjusted - np.clip(expected, 0, 255)).max() <= 0.51


@pytest.mark.parametrize("shift", [0.1, -0.3, 0.5])
def test_hue_against_colorsys(shift):
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    adjusted = adjust_colors(image, 1, 1, 1, shift)
    for before, after in zip(image.reshape(-1, 3), adjusted.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)) * 255
        assert np.abs(after - expected).max() <= 1


def test_jitter_stays_in_its_range_and_reaches_it():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    values = [
        int(ColorJitter(brightness=0.3).apply(image, np.random.default_rng(seed))[0, 0, 0])
        for seed in range(400)
    ]
    assert 70 <= min(values) <= 71 and 129 <= max(values) <= 130
    assert abs(np.mean(values) - 100) < 3


def test_no_jitter_draws_nothing_and_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rng = np.random.default_rng(3)
    assert ColorJitter().apply(image, rng) is image
    assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize(
    "amounts", [{"brightness": -0.1}, {"contrast": 1.5}, {"saturation": 2}, {"hue": 0.6}]
)
def test_impossible_jitter(amounts):
    with pytest.raises(ConfigError, match=f"COLOR_JITTER.{next(iter(amounts)).upper()}"):
        ColorJitter(**amounts)


def test_padding():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    padded = pad_to(image, (3, 4), np.array([7, 8, 9], dtype=np.uint8))
    np.testing.assert_array_equal(padded[:2, :2], image)
    assert (padded[2] == [7, 8, 9]).all() and (padded[:, 2:] == [7, 8, 9]).all()
    assert pad_to(image, (2, 2), 0) is image
