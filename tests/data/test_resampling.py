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


def _slow_bilinear(image: np.ndarray, size) -> np.ndarray:
    """Of each new pixel's middle in the old image, the mean of the four old middles around it."""
    height, width = image.shape[:2]
    out = np.empty((*size, image.shape[2]))
    for y in range(size[0]):
        for x in range(size[1]):
            place_y = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            place_x = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(place_y), int(place_x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, along = place_y - top, place_x - left
            upper = (1 - along) * image[top, left] + along * image[top, right]
            lower = (1 - along) * image[bottom, left] + along * image[bottom, right]
            out[y, x] = (1 - down) * upper + down * lower
    return out


def _slow_area(image: np.ndarray, size) -> np.ndarray:
    """The mean over the part of the old image that a new pixel covers, in exact fractions."""
    from fractions import Fraction

    def shares(old: int, new: int) -> np.ndarray:
        step = Fraction(old, new)
        table = [
            [max(min(i + 1, (j + 1) * step) - max(i, j * step), 0) for i in range(old)] for j in range(new)
        ]
        return np.array([[float(share / step) for share in row] for row in table])

    return np.einsum(
        "yh,xw,hwc->yxc", shares(image.shape[0], size[0]), shares(image.shape[1], size[1]), image
    )


@pytest.mark.parametrize("scale", [0.5, 0.51, 0.7, 0.999, 1.3, 2.6])
def test_bilinear_down_to_one_half_against_a_slow_loop(scale):
    image = np.random.default_rng(0).integers(0, 256, (22, 34, 3), dtype=np.uint8)
    size = scaled_size(22, 34, scale)
    assert np.abs(resize_image(image, size) - _slow_bilinear(image, size)).max() <= 1


@pytest.mark.parametrize("size", [(10, 16), (7, 9), (3, 34), (22, 5), (1, 1)])
def test_means_below_one_half_against_a_slow_loop(size):
    image = np.random.default_rng(0).integers(0, 256, (22, 34, 3), dtype=np.uint8)
    assert np.abs(resize_image(image, size) - _slow_area(image, size)).max() <= 0.51


def test_every_pixel_has_its_share_at_any_size():
    """A bright pixel anywhere leaves its trace: none is jumped over."""
    for size in ((11, 17), (8, 12), (6, 16), (21, 33)):
        for y, x in ((0, 0), (5, 8), (11, 21), (21, 33)):
            image = np.zeros((22, 34, 3), dtype=np.uint8)
            image[y, x] = 255
            assert resize_image(image, size).max() > 0


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


def test_a_crop_reads_no_other_pixel():
    """Changing everything outside the crop's source changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for scale in (0.3, 0.6, 1.7, 2.4):
        size = scaled_size(100, 100, scale)
        window = slice(int(40 * scale), int(60 * scale)), slice(int(30 * scale), int(50 * scale))
        other[38:62, 28:52] = image[38:62, 28:52]
        np.testing.assert_array_equal(resize_crop(image, size, window), resize_crop(other, size, window))


def test_nearest_of_a_part():
    label = np.random.default_rng(0).integers(0, 9, (30, 40)).astype(np.uint8)
    rows, columns = nearest_indices(30, 47)[5:30], nearest_indices(40, 33)[11:13]
    np.testing.assert_array_equal(take_nearest(label, rows, columns), label[rows[:, None], columns])
