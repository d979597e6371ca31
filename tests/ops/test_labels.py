"""Label down-sampling and one-hot labels against slow loops."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops.labels import downsample_labels, majority_labels, one_hot_labels


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10)])
def test_downsampling_is_nearest(size):
    labels = torch.randint(0, 256, (2, 13, 20))
    result = downsample_labels(labels, size)
    for n in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                assert result[n, i, j] == labels[n, i * 13 // size[0], j * 20 // size[1]]
    interpolated = F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0].long()
    assert torch.equal(result, interpolated)


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10), (6, 7)])
def test_downsampling_to_cell_centers(size):
    labels = torch.randint(0, 256, (2, 13, 20))
    result = downsample_labels(labels, size, "center")
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = (2 * i + 1) * 13 // (2 * size[0]), (2 * j + 1) * 20 // (2 * size[1])
            assert torch.equal(result[:, i, j], labels[:, row, column])
    interpolated = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
    assert torch.equal(result, interpolated)


def ellipses(number, side, seed):
    """A scene of ellipses on class 0, as a function of real coordinates: ``(...,) -> class``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [torch.rand(5, generator=generator).tolist() for _ in range(number)]

    def class_at(rows, columns):
        label = torch.zeros(torch.broadcast_shapes(rows.shape, columns.shape), dtype=torch.long)
        for k, (y, x, a, b, _) in enumerate(shapes):
            inside = ((rows / side - y) / (0.04 + 0.2 * a)) ** 2 + (
                (columns / side - x) / (0.04 + 0.2 * b)
            ) ** 2
            label[inside < 1] = 1 + k % 9
        return label

    return class_at


@pytest.mark.parametrize("number", [5, 25])
def test_a_network_that_is_right_at_every_cells_center_makes_no_mistake(number):
    """Labels at cells' corners call a share of its pixels misclassified, at centers none."""
    stride, side = 8, 256
    wrong = {"center": 0.0, "corner": 0.0}
    pixels = torch.arange(side)
    cells = stride * torch.arange(side // stride) + stride // 2
    for seed in range(10):
        class_at = ellipses(number, side, seed)
        labels = class_at(pixels[:, None] + 0.0, pixels[None] + 0.0)[None]
        predicted = class_at(cells[:, None] + 0.0, cells[None] + 0.0)[None]
        for rule in wrong:
            at_cells = downsample_labels(labels, predicted.shape[-2:], rule)
            wrong[rule] += (at_cells != predicted).double().mean().item() / 10
    assert wrong["center"] == 0.0
    assert 0.03 < wrong["corner"] < 0.14, wrong


def test_majority():
    labels = torch.tensor([[[0, 0, 1, 255], [0, 2, 255, 255], [2, 1, 255, 255], [1, 2, 255, 9]]])
    assert majority_labels(labels, (2, 2), 3).tolist() == [[[0, 1], [1, -1]]]
    # 3 of 4; the only valid one; 2 of 4.
    assert majority_labels(labels, (2, 2), 3, purity=0.75).tolist() == [[[0, 1], [-1, -1]]]
    assert majority_labels(labels, (2, 2), 3, purity=0.8).tolist() == [[[-1, 1], [-1, -1]]]


def test_same_size_is_not_copied():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    assert downsample_labels(labels, (4, 4)) is labels


def test_one_hot_has_no_one_for_void():
    result = one_hot_labels(torch.tensor([[0, 2, 255, -1]]), 3, torch.float32)
    assert result.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]]
