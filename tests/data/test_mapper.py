"""The mappers: what a sample is made of, and that it depends on (seed, number) alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.mapper import TestMapper, TrainMapper
from regseg_d2.data.resampling import nearest_indices, resize_image, resize_label, scaled_size
from regseg_d2.data.sampler import sample_generator
from regseg_d2.data.transforms import adjust_colors
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy


@pytest.fixture
def toy(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        yield toy_spec(tmp_path).load()


def _mapper(seed=0, **overrides):
    return TrainMapper(toy_cfg(**overrides), seed=seed)


PLAIN = {
    "INPUT__SCALE_RANGE": [1.0, 1.0],
    "INPUT__RANDOM_FLIP": "none",
    "INPUT__CROP__ENABLED": False,
}


def _files(record):
    return np.array(Image.open(record["file_name"])), np.array(Image.open(record["sem_seg_file_name"]))


def test_without_augmentation_the_files_come_through(toy):
    image, label = _files(toy[2])
    sample = _mapper(**PLAIN)(toy[2], 0)
    assert sample["image"].dtype == torch.uint8 and sample["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), image)
    np.testing.assert_array_equal(sample["sem_seg"], label)
    assert (sample["height"], sample["width"], sample["image_id"]) == (20, 30, "002")
    bgr = _mapper(**PLAIN, INPUT__FORMAT="BGR")(toy[2], 0)
    assert torch.equal(bgr["image"], sample["image"].flip(0))


def test_half_of_the_samples_are_mirrored(toy):
    mapper = _mapper(**{**PLAIN, "INPUT__RANDOM_FLIP": "horizontal"})
    image, label = _files(toy[0])
    mirrored = 0
    for number in range(200):
        sample = mapper(toy[0], number)
        flipped = np.array_equal(sample["sem_seg"], label[:, ::-1])
        mirrored += flipped
        expected = image[:, ::-1] if flipped else image
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), expected)
    assert 70 < mirrored < 130


def test_crop_comes_from_one_place_of_image_and_label(toy):
    """The place of the crop is found in the image; the label must come from the same place."""
    mapper = _mapper(**{**PLAIN, "INPUT__CROP__ENABLED": True})
    image, label = _files(toy[1])
    places = set()
    for number in range(30):
        sample = mapper(toy[1], number)
        crop = sample["image"].permute(1, 2, 0).numpy()
        assert crop.shape == (16, 24, 3)
        hits = [
            (y, x) for y in range(5) for x in range(7) if np.array_equal(image[y : y + 16, x : x + 24], crop)
        ]
        assert len(hits) == 1
        (y, x) = hits[0]
        np.testing.assert_array_equal(sample["sem_seg"], label[y : y + 16, x : x + 24])
        places.add((y, x))
    assert len(places) > 10


def test_small_images_are_padded(toy):
    mapper = _mapper(
        **{
            **PLAIN,
            "INPUT__CROP__ENABLED": True,
            "INPUT__CROP__SIZE": [25, 40],
            "INPUT__COLOR_JITTER__BRIGHTNESS": 0.9,
            "MODEL__PIXEL_MEAN": [10.4, 20.6, 300.0],
        }
    )
    sample = mapper(toy[0], 5)
    assert sample["image"].shape == (3, 25, 40)
    for region in (sample["image"][:, 20:], sample["image"][:, :, 30:]):
        assert (region == torch.tensor([10, 21, 255], dtype=torch.uint8)[:, None, None]).all()
    assert (sample["sem_seg"][20:] == 255).all() and (sample["sem_seg"][:, 30:] == 255).all()
    np.testing.assert_array_equal(sample["sem_seg"][:20, :30], _files(toy[0])[1])


def test_scaled_label_inside_the_crop(toy):
    """Scale 2: every label pixel of the crop is one of the file's, doubled."""
    mapper = _mapper(**{**PLAIN, "INPUT__SCALE_RANGE": [2.0, 2.0], "INPUT__CROP__ENABLED": True})
    doubled = _files(toy[3])[1].repeat(2, 0).repeat(2, 1)
    for number in range(10):
        crop = mapper(toy[3], number)["sem_seg"].numpy()
        assert any(
            np.array_equal(doubled[y : y + 16, x : x + 24], crop) for y in range(25) for x in range(37)
        )
    np.testing.assert_array_equal(nearest_indices(20, 40), np.arange(20).repeat(2))


def test_only_seed_and_number_matter(toy):
    full = {"INPUT__COLOR_JITTER__HUE": 0.1, "INPUT__COLOR_JITTER__BRIGHTNESS": 0.3}
    first = _mapper(**full)
    samples = [first(toy[0], number) for number in range(8)]
    np.random.seed(9)
    torch.manual_seed(9)
    again = _mapper(**full)
    for number in reversed(range(8)):
        sample = again(toy[0], number)
        assert torch.equal(sample["image"], samples[number]["image"])
        assert torch.equal(sample["sem_seg"], samples[number]["sem_seg"])
    assert len({sample["image"].numpy().tobytes() for sample in samples}) == 8
    assert not torch.equal(_mapper(seed=1, **full)(toy[0], 0)["image"], samples[0]["image"])


def _slow_sample(record, number, cfg):
    """The same sample by the plain way: everything of the whole image, one step after the other."""
    rng = sample_generator(0, number)
    image, label = _files(record)
    label = label.astype(np.int32)
    low, high = cfg.INPUT.SCALE_RANGE
    size = scaled_size(*label.shape, float(rng.uniform(low, high)))
    image, label = resize_image(image, size), resize_label(label, size)
    height, width = cfg.INPUT.CROP.SIZE
    for _ in range(10):
        top = int(rng.integers(max(size[0] - height, 0) + 1))
        left = int(rng.integers(max(size[1] - width, 0) + 1))
        crop = label[top : top + height, left : left + width]
        counts = np.bincount(crop[crop != 255], minlength=3)
        if counts.any() and counts.max() <= 0.75 * counts.sum():
            break
    plain = image[top : top + height, left : left + width]
    amounts = cfg.INPUT.COLOR_JITTER
    factors = [1.0, 1.0, 1.0, 0.0]
    if amounts.HUE:  # else nothing is drawn
        for i, amount in enumerate((amounts.BRIGHTNESS, amounts.CONTRAST, amounts.SATURATION)):
            factors[i] = float(rng.uniform(1 - amount, 1 + amount))
        factors[3] = float(rng.uniform(-amounts.HUE, amounts.HUE))
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = np.round(cfg.MODEL.PIXEL_MEAN)
    image[: plain.shape[0], : plain.shape[1]] = adjust_colors(plain, *factors)
    label = np.full((height, width), 255)
    label[: crop.shape[0], : crop.shape[1]] = crop
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label


@pytest.mark.parametrize("jitter", [False, True])
def test_samples_are_those_of_the_plain_way(toy, jitter):
    """The same draws from the same source: scale, crop, flip and jitter have the same distribution.

    Labels are equal; a grey level that the fused resizing rounds otherwise (about one in ten) is changed by
    the jitter as any other: by 1.2 x 1.2 in contrast and brightness, by little in saturation and hue.
    """
    amounts = ("BRIGHTNESS", "CONTRAST", "SATURATION")
    keys = {f"INPUT__COLOR_JITTER__{key}": 0.2 * jitter for key in amounts}
    cfg = toy_cfg(**keys, INPUT__COLOR_JITTER__HUE=0.1 * jitter)
    mapper, largest, total, sizes = TrainMapper(cfg, seed=0), 0, [], set()
    for number in range(150):
        record = toy[number % len(toy)]
        sample = mapper(record, number)
        image, label = _slow_sample(record, number, cfg)
        np.testing.assert_array_equal(sample["sem_seg"], label)
        difference = np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - image)
        largest = max(largest, int(difference.max()))
        total.append(difference.mean())
        sizes.add(int((label == 255).sum()))
    assert largest <= (6 if jitter else 1)
    assert np.mean(total) < (0.5 if jitter else 0.2)
    assert len(sizes) > 10  # samples of all scales, padded and not


def test_different_sizes_name_both_files(toy):
    Image.fromarray(np.zeros((20, 31), dtype=np.uint8)).save(toy[0]["sem_seg_file_name"])
    with pytest.raises(DatasetError) as caught:
        _mapper()(toy[0], 0)
    message = str(caught.value)
    assert toy[0]["file_name"] in message and toy[0]["sem_seg_file_name"] in message
    assert "20 x 30" in message and "20 x 31" in message


def test_orientation_turns_image_and_label_alike(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        records = toy_spec(tmp_path).load()
        image, label = _files(records[0])
        exif = Image.Exif()
        exif[0x0112] = 8
        Image.fromarray(image).save(records[0]["file_name"], exif=exif)
        Image.fromarray(label).save(records[0]["sem_seg_file_name"], exif=exif)
        sample = _mapper(**PLAIN)(records[0], 0)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), np.rot90(image))
    np.testing.assert_array_equal(sample["sem_seg"], np.rot90(label))
    assert (sample["height"], sample["width"]) == (30, 20)


def test_each_data_set_keeps_its_own_map(tmp_path):
    specs = []
    for name, label_map in (("toy_a", None), ("toy_b", {0: 1, 1: 2, 2: 0, 255: 255})):
        write_toy(tmp_path / name)
        specs.append(toy_spec(tmp_path / name, name=name, label_map=label_map))
    with registered(*specs):
        mapper = TrainMapper(toy_cfg(train=("toy_a", "toy_b"), **PLAIN), seed=0)
        (a, b) = (mapper(spec.load()[0], 0)["sem_seg"] for spec in specs)
    expected = a.clone()
    for value, target in ((0, 1), (1, 2), (2, 0)):
        expected[a == value] = target
    assert torch.equal(b, expected)


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT__CROP__TYPE", "relative"),
        ("INPUT__RANDOM_FLIP", "diagonal"),
        ("INPUT__FORMAT", "L"),
        ("INPUT__SCALE_RANGE", [1.0]),
    ],
)
def test_unsupported_values_name_their_key(toy, key, value):
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        _mapper(**{key: value})


def test_test_mapper(toy):
    image = _files(toy[4])[0]
    sample = TestMapper(toy_cfg())(toy[4])
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), image)
    assert (sample["height"], sample["width"], sample["sem_seg_file_name"]) == (
        20,
        30,
        toy[4]["sem_seg_file_name"],
    )
    resized = TestMapper(toy_cfg(INPUT__MIN_SIZE_TEST=10, INPUT__MAX_SIZE_TEST=12))(toy[4])
    assert resized["image"].shape == (3, 8, 12) and (resized["height"], resized["width"]) == (20, 30)
