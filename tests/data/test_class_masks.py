"""One mask a class beside the labels: against plain loops, through the mapper and the loader."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.data.class_masks import class_masks
from regseg_d2.data.loader import build_train_loader
from regseg_d2.data.mapper import TrainMapper
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy

PADDED = {"INPUT__CROP__SIZE": [25, 40], "INPUT__SCALE_RANGE": [0.5, 0.9], "INPUT__RANDOM_FLIP": "horizontal"}


@pytest.fixture
def toy(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        yield toy_spec(tmp_path).load()


def slow_masks(labels, ignore_value):
    """Pixel by pixel: ``{class: mask}``."""
    masks = {}
    for (row, column), value in np.ndenumerate(labels):
        if value != ignore_value:
            masks.setdefault(int(value), np.zeros(labels.shape, dtype=bool))[row, column] = True
    return masks


def assert_masks_of(instances, labels, ignore_value=255):
    expected = slow_masks(labels, ignore_value)
    assert instances.image_size == labels.shape
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.tolist() == sorted(expected)
    assert instances.gt_masks.shape == (len(expected), *labels.shape)
    for mask, index in zip(instances.gt_masks.numpy(), sorted(expected), strict=True):
        np.testing.assert_array_equal(mask, expected[index])


@pytest.mark.parametrize("ignore_value", [255, -1, 0, 65535])
def test_masks_are_those_of_a_loop_over_pixels(ignore_value):
    values = np.array([ignore_value, 1, 4, 5, 254, 256, 900])  # the classes between have no pixel
    labels = np.random.default_rng(0).choice(values, (13, 17))
    labels[0] = ignore_value
    instances = class_masks(torch.from_numpy(labels), ignore_value)
    assert_masks_of(instances, labels, ignore_value)
    assert instances.gt_classes.tolist() == [1, 4, 5, 254, 256, 900]
    # Each pixel is in one mask, or void and in none.
    np.testing.assert_array_equal(instances.gt_masks.sum(0), labels != ignore_value)


def test_an_image_of_void_pixels_has_no_mask():
    instances = class_masks(torch.full((3, 5), 255), 255)
    assert len(instances) == 0
    assert_masks_of(instances, np.full((3, 5), 255))


def test_the_mapper_makes_them_of_its_own_labels(toy):
    plain = TrainMapper(toy_cfg(**PADDED), seed=3)
    mapper = TrainMapper(toy_cfg(**PADDED, INPUT__CLASS_MASKS=True), seed=3)
    mirrored = 0
    for number in range(12):
        sample, without = mapper(toy[number % 6], number), plain(toy[number % 6], number)
        labels = sample["sem_seg"].numpy()
        assert_masks_of(sample["instances"], labels)
        # The padding is void, at the bottom and, of a mirrored sample, on the left: it is in no mask.
        assert labels.shape == (25, 40) and (labels[-1] == 255).all()
        assert not sample["instances"].gt_masks[:, -1].any()
        mirrored += int((labels[:, 0] == 255).all())
        # All else is that of a sample without masks.
        assert sample.keys() - without.keys() == {"instances"}
        assert torch.equal(sample["image"], without["image"])
        assert torch.equal(sample["sem_seg"], without["sem_seg"])
    assert 0 < mirrored < 12


def test_workers_hand_them_over(toy):
    def batches(workers):
        cfg = toy_cfg(**PADDED, INPUT__CLASS_MASKS=True, DATALOADER__NUM_WORKERS=workers)
        return [sample for batch in islice(build_train_loader(cfg, seed=5), 3) for sample in batch]

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 12
    for a, b in zip(alone, shared, strict=True):
        assert isinstance(b["instances"], Instances)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        assert torch.equal(a["instances"].gt_masks, b["instances"].gt_masks)
        assert_masks_of(b["instances"], b["sem_seg"].numpy())


def test_a_value_that_is_no_switch_names_the_key():
    with pytest.raises(ConfigError, match="'INPUT.CLASS_MASKS' is 'some'.*expected"):
        load_config("", ["INPUT.CLASS_MASKS", "some"])
