"""FCN: plain convolutions, as a context module and as an auxiliary head."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, init_classifier


@CONTEXT_MODULE.register()
class FCN(Stage):
    """A row of ``num_convs`` convolution blocks (Long et al., CVPR 2015, as PSPNet's authors write it)."""

    aggregates_context = False

    head_keys = {"num_convs": "FCN_NUM_CONVS", "kernel_size": "FCN_KERNEL_SIZE"}

    @configurable
    def __init__(
        self, *, in_channels: int, out_channels: int, num_convs: int, norm: str, kernel_size: int = 3
    ) -> None:
        super().__init__()
        check_head_key("FCN_NUM_CONVS", num_convs, num_convs >= 0, "0 or more")
        self.out_channels = out_channels if num_convs else in_channels
        widths = [in_channels] + [out_channels] * num_convs
        self.convs = nn.Sequential(
            *(conv_norm_relu(a, b, kernel_size, norm) for a, b in zip(widths[:-1], widths[1:], strict=True))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``; no side logits."""
        return self.convs(x), {}


class FCNAuxiliary(nn.Module):
    """A small FCN head on an earlier feature, for deep supervision (Zhao et al., CVPR 2017)."""

    #: As in ``ContextHead``.
    dropout_feeds_predictor = True

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_convs: int,
        kernel_size: int,
        num_classes: int,
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        self.context = FCN(
            in_channels=in_channels,
            out_channels=channels,
            num_convs=num_convs,
            norm=norm,
            kernel_size=kernel_size,
        )
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(self.context.out_channels, num_classes, kernel_size=1)
        init_classifier(self.predictor)

    def forward(self, x: Tensor) -> Tensor:
        """Maps a feature ``(N, C, h, w)`` to logits ``(N, K, h, w)``."""
        return self.predictor(self.dropout(self.context(x)[0]))
