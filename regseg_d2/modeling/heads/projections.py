"""The last block before the classifier: plain, separable, with CAR's linear convolution, or a norm alone."""

from __future__ import annotations

import copy

import torch
from detectron2.config import configurable
from detectron2.layers import get_norm
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import PROJECTION
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, separable_conv_norm_relu, zero_bias

_KEYS = {"out_channels": "CONVS_DIM", "kernel_size": "PROJECTION_KERNEL_SIZE"}


def _check_kernel_size(size: int) -> None:
    check_head_key("PROJECTION_KERNEL_SIZE", size, size in (1, 3, 5, 7), "1, 3, 5 or 7")


@PROJECTION.register()
class ConvBlock(Stage):
    """Convolution, norm, ReLU; of kernel 3 as usual, 1 for the paper's column "A" (CAR, section 4.2.1)."""

    head_keys = _KEYS

    @configurable
    def __init__(self, *, in_channels: int, out_channels: int, kernel_size: int, norm: str) -> None:
        super().__init__()
        _check_kernel_size(kernel_size)
        self.out_channels = out_channels
        self.conv = conv_norm_relu(in_channels, out_channels, kernel_size, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.conv(x)


@PROJECTION.register()
class SeparableConvBlock(Stage):
    """The last 3x3 block of DeepLabV3+, separable (Chen et al., ECCV 2018, section 3.1; mmsegmentation's)."""

    head_keys = {"out_channels": "CONVS_DIM"}

    @configurable
    def __init__(self, *, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = separable_conv_norm_relu(in_channels, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.conv(x)


@PROJECTION.register()
class LinearConvBlock(Stage):
    """CAR's projection: a linear 1x1 convolution, whose output is the CAR feature, then a block.

    The linear convolution has a bias, no norm and no activation (CAR, figure 3). :meth:`fold` merges
    it into the convolution behind it, after which the block costs what the plain one does.

    Args:
        linear_channels: channels of the CAR feature; 0 is ``min(in_channels, 512)``.
        kernel_size: kernel of the convolution behind it; only 1 can be folded exactly.
    """

    head_keys = {**_KEYS, "linear_channels": "LINEAR_CHANNELS"}

    @configurable
    def __init__(
        self, *, in_channels: int, linear_channels: int, out_channels: int, kernel_size: int, norm: str
    ) -> None:
        super().__init__()
        _check_kernel_size(kernel_size)
        self.out_channels = out_channels
        linear_channels = linear_channels or min(in_channels, 512)
        self.linear = _linear_convolution(in_channels, linear_channels)
        self.conv = conv_norm_relu(linear_channels, out_channels, kernel_size, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.conv(self.linear(x))

    @property
    def folds(self) -> bool:
        """Whether :meth:`fold` is exact: a larger kernel sees zeros at the border instead of the bias."""
        return self.conv.kernel_size == (1, 1)

    @torch.no_grad()
    def fold(self) -> ConvBlock:
        """Returns a block of the same function and one convolution less; evaluation only.

        Its convolution has no bias where a batch norm follows, whose mean takes it: it is the block of a
        network that was built with ``PROJECTION: ConvBlock``.

        Raises:
            ValueError: if the convolution behind is larger than 1x1: at the border it sees zeros
                where the linear convolution would have put its bias, so that folding is not exact.
        """
        if not self.folds:
            raise ValueError(
                f"the convolution behind the linear one is {self.conv.kernel_size}; expected (1, 1): "
                "set MODEL.SEM_SEG_HEAD.PROJECTION_KERNEL_SIZE to 1 before training"
            )
        first, second = self.linear, self.conv
        folded = ConvBlock(
            in_channels=first.in_channels, out_channels=second.out_channels, kernel_size=1, norm=""
        )
        weight, bias = _folded(first, second)
        folded.conv.weight.copy_(weight)
        folded.conv.norm = copy.deepcopy(second.norm)
        if hasattr(second.norm, "running_mean"):
            folded.conv.norm.running_mean.sub_(bias)
            folded.conv.bias = None
        else:
            folded.conv.bias.copy_(bias)
        return folded.to(first.weight.device).train(self.training)


@PROJECTION.register()
class Norm(Stage):
    """A norm and nothing else: with the classifier behind it, the linear head of DINOv2.

    Oquab et al., TMLR 2024, section 7.4, and ``BNHead`` of the published code; DINOv3's (Siméoni et al.,
    2025) has a dropout before the norm.
    """

    @configurable
    def __init__(self, *, in_channels: int, norm: str) -> None:
        super().__init__()
        check_head_key(
            "NORM", norm, bool(norm), "a norm, such as 'auto', for MODEL.SEM_SEG_HEAD.PROJECTION 'Norm'"
        )
        self.out_channels = in_channels
        self.norm = get_norm(norm, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to the same shape."""
        return self.norm(x)


@PROJECTION.register()
class NormLinear(Norm):
    """:class:`Norm`, then a linear 1x1 convolution whose output is the CAR feature (CAR, figure 3).

    With the classifier, which is linear too, it is one linear map: :meth:`fold` leaves the linear head.

    ``linear_channels`` are those of the CAR feature; 0 is ``min(in_channels, 512)``. Fewer than there are
    classes narrow what the head can express.
    """

    head_keys = {"linear_channels": "LINEAR_CHANNELS"}

    @configurable
    def __init__(self, *, in_channels: int, linear_channels: int, norm: str) -> None:
        super().__init__(in_channels=in_channels, norm=norm)
        self.out_channels = linear_channels or min(in_channels, 512)
        self.linear = _linear_convolution(in_channels, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``."""
        return self.linear(super().forward(x))

    @torch.no_grad()
    def fold(self, predictor: nn.Conv2d) -> tuple[Norm, nn.Conv2d]:
        """Returns the norm alone, and the 1x1 classifier ``predictor`` with the linear convolution in it."""
        norm = Norm(in_channels=self.linear.in_channels, norm="BN")
        norm.norm = self.norm
        merged = nn.Conv2d(self.linear.in_channels, predictor.out_channels, kernel_size=1)
        weight, bias = _folded(self.linear, predictor)
        merged.to(self.linear.weight).load_state_dict({"weight": weight, "bias": bias})
        return norm.train(self.training), merged.train(self.training)


def _linear_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    linear = nn.Conv2d(in_channels, out_channels, kernel_size=1)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
    zero_bias(linear)
    return linear


def _folded(first: nn.Conv2d, second: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one 1x1 convolution that does what two do, one behind the other."""
    # In double precision, so that only the final rounding is left.
    outer = second.weight.flatten(1).double()
    weight = outer @ first.weight.flatten(1).double()
    bias = torch.zeros_like(weight[:, 0])
    if first.bias is not None:
        bias = bias + outer @ first.bias.double()
    if second.bias is not None:
        bias = bias + second.bias.double()
    return weight[..., None, None], bias
