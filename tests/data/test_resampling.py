"""Scaling of images and labels, whole and of a crop alone, against slow references."""

import numpy as np
import pytest

from regseg_d2.data.resampling import (
    nearest_indices,
    resize_crop,
    resize_image,
    resize_label,
    scaled_size,
    take_nearest,
)


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


def _crops(size, rng, count=6):
    """Windows of the resized image: the whole, its corners, and random ones."""
    height, width = size
    yield slice(0, height), slice(0, width)
    yield slice(0, 1), slice(width - 1, width)
    yield slice(height - 1, height), slice(0, width)
    for _ in range(count):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        bottom, right = int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1
        yield slice(top, bottom), slice(left, right)


@pytest.mark.parametrize("kind", ["black and white", "noise"])
@pytest.mark.parametrize("scale", [0.2, 0.37, 0.5, 0.61, 0.75, 0.93, 0.999, 1.0, 1.004, 1.3, 1.77, 2.0, 3.1])
def test_resized_crop_equals_the_crop_of_the_resized_image(scale, kind):
    """One grey level at most, where black meets white pixel by pixel, in every window."""
    rng = np.random.default_rng(int(1000 * scale))
    for shape in ((61, 83), (64, 48), (7, 130)):
        image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        if kind == "black and white":
            image = (image > 127).astype(np.uint8) * 255
        size = scaled_size(*shape, scale)
        whole = resize_image(image, size).astype(int)
        for window in _crops(size, rng):
            crop = resize_crop(image, size, window)
            assert crop.dtype == np.uint8 and crop.shape == whole[window].shape
            assert np.abs(crop - whole[window]).max() <= 1


@pytest.mark.parametrize("scale", [0.55, 0.8, 1.45])
def test_resized_crop_is_as_near_to_the_truth(scale):
    """Against unrounded values: no further off than the resized image, which is 0.13 too low when growing."""
    image = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    size = scaled_size(200, 240, scale)
    # Small enough, and far enough from the corner, for every way of growing.
    for window in ((slice(11, 97), slice(7, 101)), (slice(90, 100), slice(100, 120))):
        exact = resize_image(image.astype(np.float64), size)[window]
        crop = resize_crop(image, size, window) - exact
        whole = resize_image(image, size)[window] - exact
        assert np.abs(crop).max() < 1.01
        assert np.abs(crop).mean() < np.abs(whole).mean() + 0.1
        assert abs(crop.mean()) < abs(whole.mean()) + 0.02


@pytest.mark.parametrize("old, new", [(7, 5), (10, 3), (9, 9), (64, 33)])
def test_area_means_against_a_slow_loop(old, new):
    """Shares of old pixels in a new one, in exact fractions."""
    from fractions import Fraction

    line = np.random.default_rng(old).integers(0, 256, old)
    image = np.repeat(line.astype(np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    step = Fraction(old, new)
    for place in range(new):
        low, high = place * step, (place + 1) * step
        shares = [max(min(i + 1, high) - max(i, low), 0) for i in range(old)]
        assert sum(shares) == step
        expected = float(sum(int(v) * share for v, share in zip(line, shares, strict=True)) / step)
        crop = resize_crop(image, (4 if new == old else 3, new), (slice(0, 1), slice(place, place + 1)))
        assert np.abs(crop - expected).max() <= 0.51


def test_a_crop_reads_no_other_pixel():
    """Changing everything outside the crop's source changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for scale in (0.6, 1.7, 2.4):
        size = scaled_size(100, 100, scale)
        window = slice(int(40 * scale), int(60 * scale)), slice(int(30 * scale), int(50 * scale))
        other[38:62, 28:52] = image[38:62, 28:52]
        np.testing.assert_array_equal(resize_crop(image, size, window), resize_crop(other, size, window))


def test_nearest_of_a_part():
    label = np.random.default_rng(0).integers(0, 9, (30, 40)).astype(np.uint8)
    rows, columns = nearest_indices(30, 47)[5:30], nearest_indices(40, 33)[11:13]
    np.testing.assert_array_equal(take_nearest(label, rows, columns), label[rows[:, None], columns])
