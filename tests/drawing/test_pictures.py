"""Pictures of predictions, by their pixels."""

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from regseg_d2.drawing.pictures import class_colors, color_label

COLORS = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)


def test_classes_get_their_colour_and_void_is_black():
    painted = color_label(np.array([[0, 1], [255, -1]]), COLORS)
    assert painted.tolist() == [[[10, 20, 30], [40, 50, 60]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_more_classes_than_a_byte_holds(dtype):
    colors = np.arange(900, dtype=np.int64).reshape(300, 3).astype(np.uint8)
    label = np.array([[0, 7, 255]]).astype(dtype)
    assert color_label(label, colors).tolist() == [[colors[i].tolist() for i in (0, 7, 255)]]
    if dtype != np.uint8:
        assert color_label(np.array([[299, 300]], dtype), colors).tolist() == [
            [colors[299].tolist(), [0, 0, 0]]
        ]


def test_colours_of_the_data_set_or_distinct_ones():
    metadata = MetadataCatalog.get("visualize_test")
    colors = class_colors(metadata, 150)
    assert len({tuple(color) for color in colors.tolist()}) == 150
    assert [0, 0, 0] not in colors.tolist()
    assert colors[0].tolist() == [128, 0, 0]  # PASCAL VOC's first class
    metadata.set(stuff_colors=[[1, 2, 3], [4, 5, 6]])
    assert class_colors(metadata, 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    MetadataCatalog.remove("visualize_test")
