"""Networks of timm that compute as mmsegmentation's of the same name.

timm's networks differ from mmsegmentation's in places that the names and shapes of the weights do not show. A
checkpoint trained there gives its own features only where these are followed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, PatchEmbed
from timm.models.hrnet import HighResolutionModule
from timm.models.resnet import BasicBlock
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from regseg_d2.common.errors import check_key

CONVENTIONS = ("timm", "mmseg")


def apply_convention(network: nn.Module, convention: str) -> None:
    """Makes a timm network follow a convention, in place. Parameters and names stay.

    ``"mmseg"`` changes:

    * ResNet-18 and -34: in a dilated stage only the first convolution of a block is dilated.
    * ResNets with pooling in the shortcuts (v1d): a shortcut without stride has none.
    * HRNet: branches are upsampled bilinearly, to the size of the branch they are added to.
    * Swin: features are padded to whole windows before they are shifted, as in the authors' code for
      segmentation; timm shifts first, so that its masks miss the seam unless windows fit exactly. Images
      whose size is no multiple of the patch are padded.

    Raises:
        ConfigError: if the convention is unknown.
    """
    check_key("MODEL.TIMM.CONVENTION", convention, convention in CONVENTIONS, f"one of {CONVENTIONS}")
    if convention == "timm":
        return
    for module in network.modules():
        if isinstance(module, BasicBlock) and module.conv2.dilation != (1, 1):
            module.conv2.dilation = module.conv2.padding = (1, 1)
        elif isinstance(module, PatchEmbed):
            module.dynamic_img_pad = True
        elif type(module) is HighResolutionModule:
            module.__class__ = BilinearHighResolutionModule
            for layer in module.modules():
                if isinstance(layer, nn.Upsample):
                    layer.mode, layer.align_corners = "bilinear", False
        elif type(module) is SwinTransformerBlock:
            module.__class__ = PadFirstSwinBlock
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential) and isinstance(shortcut[0], AvgPool2dSame):
            shortcut[0] = nn.Identity()


class BilinearHighResolutionModule(HighResolutionModule):
    """HRNet's exchange of branches at any size: halved sizes are rounded up, so doubling may overshoot."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Maps branches ``(N, C_i, h_i, w_i)`` to branches of the same shapes."""
        if self.num_branches == 1:
            return [self.branches[0](x[0])]
        x = [branch(feature) for branch, feature in zip(self.branches, x, strict=True)]
        outputs = []
        for target, layers in zip(x, self.fuse_layers, strict=False):  # one output: fewer layers
            total = None
            for layer, feature in zip(layers, x, strict=True):
                feature = layer(feature)
                if feature.shape[-2:] != target.shape[-2:]:
                    feature = F.interpolate(
                        feature, size=target.shape[-2:], mode="bilinear", align_corners=False
                    )
                total = feature if total is None else total + feature
            outputs.append(self.fuse_act(total))
        return outputs


class PadFirstSwinBlock(SwinTransformerBlock):
    """A Swin block that pads to whole windows, then shifts (Liu et al., ICCV 2021, figure 4)."""

    def _attn(self, x: Tensor) -> Tensor:
        """Attention in (shifted) windows of ``(N, H, W, C)``."""
        images, height, width, channels = x.shape
        (window_h, window_w), (shift_h, shift_w) = self.window_size, self.shift_size
        rows, columns = (height + window_h - 1) // window_h, (width + window_w - 1) // window_w
        padded_h, padded_w = rows * window_h, columns * window_w
        x = F.pad(x, (0, 0, 0, padded_w - width, 0, padded_h - height))
        if any(self.shift_size):
            x = torch.roll(x, shifts=(-shift_h, -shift_w), dims=(1, 2))
        # Every number is given and every copy made, whatever the size: exported networks then take any.
        windows = _copied(x.view(images, rows, window_h, columns, window_w, channels).transpose(2, 3))
        windows = windows.view(images * rows * columns, self.window_area, channels)
        windows = self.attn(windows, mask=self._mask(rows, columns, x))
        windows = windows.view(images, rows, columns, window_h, window_w, channels)
        x = _copied(windows.transpose(2, 3)).view(images, padded_h, padded_w, channels)
        if any(self.shift_size):
            x = torch.roll(x, shifts=(shift_h, shift_w), dims=(1, 2))
        return F.pad(x, (0, 0, 0, width - padded_w, 0, height - padded_h))

    def _mask(self, rows: int, columns: int, like: Tensor) -> Tensor | None:
        """What keeps parts of a shifted window apart that are no neighbours: -100 a pair, as timm has it."""
        if not any(self.shift_size):
            return None
        (window_h, window_w), (shift_h, shift_w) = self.window_size, self.shift_size
        parts_h = _parts(rows, window_h, shift_h, like).view(rows, 1, window_h, 1)
        parts_w = _parts(columns, window_w, shift_w, like).view(1, columns, 1, window_w)
        parts = _copied(3 * parts_h + parts_w).view(rows * columns, self.window_area)
        return (parts.unsqueeze(1) != parts.unsqueeze(2)).to(like.dtype) * -100.0


def _parts(windows: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Which of three stretches each place of an axis is from: before the last window, and that one's two."""
    places = torch.arange(windows * window, device=like.device)
    return (places >= (windows - 1) * window).long() + (places >= windows * window - shift).long()


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)
