"""Labels of pixels from what Detectron2's mappers give."""

import re

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from regseg_d2.common.errors import UserError
from regseg_d2.data.class_masks import class_masks
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.targets import pad_labels, semantic_labels
from tests.helpers import IGNORE, small_batch, small_cfg


def instances(masks, classes, size=(4, 6)):
    found = Instances(size)
    found.gt_masks, found.gt_classes = masks, torch.tensor(classes)
    return found


def rectangles():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 1:3] = True  # small, class 5
    masks[1, :, :4] = True  # large, class 2, beneath it
    return masks


EXPECTED = [[2, 2, 2, 2, 255, 255], [2, 5, 5, 2, 255, 255], [2, 5, 5, 2, 255, 255], [2, 2, 2, 2, 255, 255]]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("kind", [lambda masks: masks, BitMasks])
def test_instances_are_painted_the_small_ones_on_top(kind, order):
    sample = {"instances": instances(kind(rectangles()[order]), [[5, 2][x] for x in order])}
    labels = semantic_labels(sample, 255)
    assert labels.dtype == torch.long
    assert labels.tolist() == EXPECTED


def test_polygons_are_painted():
    polygons = [[np.array([1.0, 1, 3, 1, 3, 3, 1, 3])], [np.array([0.0, 0, 4, 0, 4, 4, 0, 4])]]
    labels = semantic_labels({"instances": instances(PolygonMasks(polygons), [5, 2])}, 255)
    assert labels.tolist() == EXPECTED


def test_an_image_without_instances_is_void():
    for masks in (torch.zeros(0, 4, 6, dtype=torch.bool), PolygonMasks([])):
        labels = semantic_labels({"instances": instances(masks, [])}, 7)
        assert torch.equal(labels, torch.full((4, 6), 7))


def test_semantic_labels_come_first():
    labels = torch.ones(4, 6)
    assert semantic_labels({"sem_seg": labels, "instances": instances(rectangles(), [5, 2])}, 255) is labels


@pytest.mark.parametrize("labels", ["blocks", "void"])
def test_the_masks_of_labels_are_painted_as_these_labels(labels):
    for sample in small_batch(labels=labels):
        painted = semantic_labels({"instances": class_masks(sample["sem_seg"], IGNORE)}, IGNORE)
        assert torch.equal(painted, sample["sem_seg"])


def test_a_network_that_reads_no_masks_is_not_changed_by_them():
    def losses(with_masks):
        torch.manual_seed(0)
        model = build_model(small_cfg("FCN", ["CAR"], INPUT__CLASS_MASKS=with_masks))
        batch = small_batch()
        for sample in batch if with_masks else ():
            sample["instances"] = class_masks(sample["sem_seg"], IGNORE)
        torch.manual_seed(1)
        return {name: loss.item() for name, loss in model(batch).items()}

    without = losses(False)
    assert losses(True) == without and len(without) == 4


def test_inputs_without_labels_are_named():
    only_boxes = Instances((4, 6))
    only_boxes.gt_classes = torch.zeros(0)
    for sample in ({"image": 1}, {"instances": only_boxes}):
        with pytest.raises(
            UserError, match=re.escape(f"has {sorted(sample)}") + ".*or 'instances' with gt_masks"
        ):
            semantic_labels(sample, 255)


def test_labels_are_padded_as_the_images_are():
    padded = pad_labels([torch.zeros(2, 3), torch.ones(3, 2)], (3, 4), 255)
    assert padded.tolist() == [
        [[0, 0, 0, 255], [0, 0, 0, 255], [255] * 4],
        [[1, 1, 255, 255], [1, 1, 255, 255], [1, 1, 255, 255]],
    ]
    with pytest.raises(UserError, match=r"size \(5, 2\) .* at the size \(3, 4\)"):
        pad_labels([torch.zeros(5, 2)], (3, 4), 255)
