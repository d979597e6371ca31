"""Augmentations against slow references and known values."""

import colorsys
import itertools

import cv2
import numpy as np
import pytest

from regseg_d2.common.errors import ConfigError
from regseg_d2.data.transforms import (
    FLIPS,
    ColorJitter,
    RandomCrop,
    RandomScale,
    WantedClass,
    adjust_colors,
    count_labels,
    to_planes,
    to_target,
)


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


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
def test_crop_equals_a_slow_loop(share, dtype):
    label = np.random.default_rng(5).integers(0, 3, (6, 6)).astype(dtype).repeat(5, 0).repeat(5, 1)
    label[:9, :15] = 255
    crop = RandomCrop((8, 8), share)
    tries = []
    for seed in range(60):
        (rows, columns), cut = crop.draw(np.random.default_rng(seed), label, np.arange(30), np.arange(30))
        expected = _slow_crop(np.random.default_rng(seed), label, (8, 8), share, 255)
        assert (rows.start, columns.start) == expected
        np.testing.assert_array_equal(cut, label[rows, columns])
        assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 8)
        tries.append(expected)
    assert len(set(tries)) > 30


def test_capped_crops_are_mixed_where_possible():
    label = np.zeros((20, 40), dtype=np.int32)
    label[:, 20:] = 1
    shares = []
    for seed in range(200):
        window, _ = RandomCrop((10, 10), 0.75).draw(
            np.random.default_rng(seed), label, np.arange(20), np.arange(40)
        )
        shares.append(max(np.mean(label[window] == 0), np.mean(label[window] == 1)))
    # A single draw is pure or nearly so in 4 of 5 cases, ten in a row in about 1 of 7.
    assert np.mean(np.array(shares) <= 0.75) > 0.75


def test_crop_larger_than_the_image():
    label = np.zeros((5, 40), dtype=np.int32)
    (rows, columns), _ = RandomCrop((10, 10), 0.5).draw(
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
    # OpenCV's matrix has steps of 1/1024, which is 3 x 255 / 2048 grey levels at most, before rounding.
    assert np.abs(adjusted - np.clip(expected, 0, 255)).max() <= 0.9


@pytest.mark.parametrize("shift", [0.1, -0.3, 0.5])
def test_hue_against_colorsys(shift):
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    adjusted = adjust_colors(image, 1, 1, 1, shift)
    for before, after in zip(image.reshape(-1, 3), adjusted.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)) * 255
        assert np.abs(after - expected).max() <= 1


def _float_adjust(image, brightness, contrast, saturation, hue):
    """The four changes one after the other in float32, rounded once at the end."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    values = image.astype(np.float32) * np.float32(brightness)
    mean = np.float32((values * weights).sum(axis=2).mean(dtype=np.float64))
    values = mean + (values - mean) * np.float32(contrast)
    luminance = (values * weights).sum(axis=2, keepdims=True)
    values = luminance + (values - luminance) * np.float32(saturation)
    hsv = cv2.cvtColor(values.clip(0, 255), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(360 * hue)) % np.float32(360)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def test_jitter_equals_the_changes_one_by_one():
    """Every grey level of every channel, all amounts at their largest: 2 levels apart at most."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rng, differences = np.random.default_rng(1), []
    for _ in range(200):
        factors = [*rng.uniform(0.5, 1.5, 3), rng.uniform(-0.5, 0.5)]
        difference = adjust_colors(image, *factors).astype(int) - _float_adjust(image, *factors)
        differences.append(difference)
    assert np.abs(differences).max() <= 2
    assert np.abs(differences).mean() < 0.3 and abs(np.mean(differences)) < 0.02


def test_jitter_stays_in_its_range_and_reaches_it():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    values = [
        int(ColorJitter(brightness=0.3).apply(image, np.random.default_rng(seed))[0, 0, 0])
        for seed in range(400)
    ]
    assert 70 <= min(values) <= 71 and 129 <= max(values) <= 130
    assert abs(np.mean(values) - 100) < 3


def test_each_change_happens_with_its_probability():
    image = np.random.default_rng(0).integers(40, 200, (6, 6, 3), dtype=np.uint8)
    sums = image.astype(float).sum(axis=2)
    kinds = []
    for seed in range(600):
        jitter = ColorJitter(brightness=0.1, hue=0.3, probability=0.25)
        changed = jitter.apply(image, np.random.default_rng(seed))
        brighter = abs(changed.max(axis=2).astype(float).mean() / image.max(axis=2).mean() - 1) > 0.004
        turned = np.abs(changed.astype(float).sum(axis=2) / changed.max(axis=2) - sums / image.max(axis=2))
        kinds.append((brighter, turned.max() > 0.05))
    shares = np.mean(kinds, axis=0)
    assert np.abs(shares - 0.25).max() < 0.06
    assert abs(np.mean(np.all(kinds, axis=1)) - 1 / 16) < 0.04


def test_a_change_that_always_happens_draws_no_more_than_before():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    always, rng = ColorJitter(0.1, 0.2, 0.3, 0.1), np.random.default_rng(5)
    always.apply(image, rng)
    other = np.random.default_rng(5)
    other.random(4)
    assert rng.random() == other.random()


def test_no_jitter_draws_nothing_and_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rng = np.random.default_rng(3)
    assert ColorJitter().apply(image, rng) is image
    assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize(
    "amounts",
    [{"brightness": -0.1}, {"contrast": 1.5}, {"saturation": 2}, {"hue": 0.6}, {"probability": 1.1}],
)
def test_impossible_jitter(amounts):
    with pytest.raises(ConfigError, match=f"COLOR_JITTER.{next(iter(amounts)).upper()}"):
        ColorJitter(**amounts)


def test_planes_and_targets():
    """Padding below and to the right, then mirroring, then the order of the channels."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    label = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    for mirrored, bgr in itertools.product(FLIPS, (False, True)):
        padded = np.empty((3, 4, 3), dtype=np.uint8)
        padded[:] = [9, 8, 7] if bgr else [7, 8, 9]
        padded[:2, :2] = image
        target = np.full((3, 4), 255)
        target[:2, :2] = label
        if mirrored == "horizontal":
            padded, target = padded[:, ::-1], target[:, ::-1]
        elif mirrored == "vertical":
            padded, target = padded[::-1], target[::-1]
        if bgr:
            padded = padded[:, :, ::-1]
        pixel = np.array([7, 8, 9], dtype=np.uint8)
        planes = to_planes(image, (3, 4), pixel, mirrored=mirrored, bgr=bgr)
        np.testing.assert_array_equal(planes, padded.transpose(2, 0, 1))
        made = to_target(label, (3, 4), 255, mirrored=mirrored)
        assert made.dtype == np.int64
        np.testing.assert_array_equal(made, target)
    whole = to_planes(image, None, pixel, mirrored="none", bgr=False)
    np.testing.assert_array_equal(whole, image.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("ignore_value", [255, 250, -1, 300])
def test_counting_labels(dtype, ignore_value):
    label = np.array([[0, 3, 3, 250], [3, 0, 7, 7]], dtype=dtype)
    counts = count_labels(label, ignore_value)
    expected = {0: 2, 3: 3, 7: 2, 250: 1}
    expected.pop(ignore_value, None)
    assert {value: int(count) for value, count in enumerate(counts) if count} == expected


def test_crops_show_the_wanted_class():
    """A class in a corner: drawn for it, a crop holds enough of it, far more often than by chance."""
    label = np.zeros((40, 40), dtype=np.uint8)
    label[:, 20:] = 1
    label[30:, 30:] = 2

    def share(wanted):
        crops = [
            RandomCrop((20, 20), 0.9).draw(
                np.random.default_rng(seed), label, np.arange(40), np.arange(40), wanted
            )[1]
            for seed in range(300)
        ]
        return np.mean([np.count_nonzero(crop == 2) >= 50 for crop in crops])

    # A corner of at least 50 pixels is in (11 * 11 - those with a product below 50) of 441 crops.
    products = np.outer(np.arange(11), np.arange(11)).astype(int)
    single = np.count_nonzero(products >= 50) * 1.0 / 441
    assert share(None) < 3 * single < 0.5
    assert abs(share(WantedClass(2, 50)) - (1 - (1 - single) ** 10)) < 0.1
    # A class that is not there at all: the last crop is taken.
    assert share(WantedClass(9, 1)) < 3 * single
