"""TensorFlow's padding depends on the size: constants, where it is the same at all sizes that come."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn

#: Left, right, top, bottom.
Padding = tuple[int, int, int, int]

#: Heights and widths with all kinds of remainders.
SIZES = ((65, 131), (90, 200), (131, 97), (224, 66))


def with_fixed_padding(network: nn.Module, sizes: Iterable[tuple[int, int]] = SIZES) -> nn.Module:
    """Gives convolutions with TensorFlow's padding the padding that they have at all ``sizes``.

    What is padded before a stride depends on the side's remainder by it. Images are padded to multiples
    of the network's stride first, so that it is always the same; where it is not, the convolution stays.

    Args:
        network: is called with one image of each size, and not changed.
        sizes: heights and widths.

    Returns:
        A copy, or the network itself if it has no such convolution.
    """
    if not any(type(part) is Conv2dSame for part in network.modules()):
        return network
    network = copy.deepcopy(network)
    same = {name: part for name, part in network.named_modules() if type(part) is Conv2dSame}
    paddings: dict[str, set[Padding]] = {name: set() for name in same}

    def record(name: str) -> Any:
        def hook(conv: Any, inputs: tuple[Tensor, ...]) -> None:
            (x,) = inputs
            left, right, top, bottom = pad_same_arg(
                list(x.shape[-2:]), conv.kernel_size, conv.stride, conv.dilation
            )
            paddings[name].add((left, right, top, bottom))

        return hook

    hooks = [part.register_forward_pre_hook(record(name)) for name, part in same.items()]
    try:
        with torch.no_grad():
            for size in sizes:
                network(torch.zeros(1, 3, *size))
    finally:
        for hook in hooks:
            hook.remove()
    fixed = {name: each.pop() for name, each in paddings.items() if len(each) == 1}
    for name, padding in fixed.items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, _with_padding(same[name], padding))
    return network


def _with_padding(conv: Any, padding: Padding) -> nn.Module:
    """The convolution, padded by constants."""
    left, right, top, bottom = padding
    even = left == right and top == bottom
    result = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        (top, left) if even else 0,
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    result.weight, result.bias = conv.weight, conv.bias
    result.training = conv.training
    return result if even else nn.Sequential(nn.ZeroPad2d(padding), result)
