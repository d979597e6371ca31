"""Convolutions whose padding depends on the size, in networks that are exported."""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from regseg_d2.apps.export.agreement import made_up_images
from regseg_d2.apps.export.formats import FORMATS
from regseg_d2.apps.export.padding import with_fixed_padding

CALLED_WITH = [(8, 8), (31, 70), (64, 64), (100, 57), (129, 200)]


class Strided(nn.Module):
    """Three convolutions with strides, and one that is dilated."""

    def __init__(self, pads):
        super().__init__()
        self.pads = pads
        self.stages = nn.Sequential(
            Conv2dSame(3, 4, 3, stride=2),
            nn.ReLU(),
            Conv2dSame(4, 4, 5, stride=2, groups=4, bias=False),
            Conv2dSame(4, 6, 2, stride=2),
            Conv2dSame(6, 6, 3, dilation=2),
        )

    def forward(self, images):
        height, width = images.shape[-2:]
        if self.pads:
            images = F.pad(images, (0, -width % 8, 0, -height % 8))
        return self.stages(images)


def kinds(network):
    return [type(part).__name__ for part in network.modules() if isinstance(part, nn.Conv2d)]


def same(first, second):
    return first.shape == second.shape and (first - second).abs().max() <= 1e-6 * second.abs().max()


def test_equal_at_any_size():
    network = Strided(pads=True).eval()
    fixed = with_fixed_padding(network)
    assert kinds(network) == ["Conv2dSame"] * 4  # the network itself is not touched
    assert kinds(fixed) == ["Conv2d"] * 4
    for size in CALLED_WITH:
        images = made_up_images((2, *size), seed=1)
        assert same(fixed(images), network(images))


def test_what_depends_on_the_size_stays():
    network = Strided(pads=False).eval()
    fixed = with_fixed_padding(network)
    # The padding of the last is that of stride 1, always the same.
    assert kinds(fixed) == ["Conv2dSame"] * 3 + ["Conv2d"]
    for size in CALLED_WITH:
        images = made_up_images((1, *size), seed=1)
        assert same(fixed(images), network(images))


def test_one_size():
    network = Strided(pads=False).eval()
    fixed = with_fixed_padding(network, [(65, 90)])
    assert kinds(fixed) == ["Conv2d"] * 4
    images = made_up_images((1, 65, 90), seed=1)
    assert same(fixed(images), network(images))


def test_a_network_without_such_convolutions_is_not_copied():
    network = nn.Conv2d(3, 4, 3)
    assert with_fixed_padding(network) is network


def test_the_graph_can_be_saved_for_any_size(tmp_path):
    network = Strided(pads=True).eval()
    example = made_up_images((2, 64, 96), seed=0)
    torch_export = FORMATS["torch-export"]
    torch_export.write(network, example, tmp_path / "a.pt2", "{}", any_size=True)
    run = torch_export.load(tmp_path / "a.pt2")
    for size in CALLED_WITH[1:]:
        images = made_up_images((2, *size), seed=1)
        with torch.no_grad():
            assert same(run(images), network(images))
