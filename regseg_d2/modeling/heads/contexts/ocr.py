"""OCR: object-contextual representations, the context of OCRNet."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, pooled_conv_norm_relu, resize_to


@CONTEXT_MODULE.register()
class OCR(Stage):
    """Each pixel attends to one vector a class (Yuan et al., ECCV 2020, section 3.2).

    The coarse logits of the auxiliary head say softly which pixels belong to a class, its object region. The
    mean of the features over a region stands for it (Eq. 8); pixels attend to the regions (Eq. 9 and 10), and
    what they get is joined to their own feature and mixed (Eq. 11). A 3x3 block on the input comes first.
    With it the paper's head is complete: behind it comes the classifier,
    ``MODEL.SEM_SEG_HEAD.PROJECTION: ""``.

    Without ``fuse`` what pixels get and their own features go on side by side, for the projection of the head
    to mix: the place of CAR's blocks in the published code of "OCR + CAR".

    The layers are those of mmsegmentation's ``OCRHead``, one 1x1 block on the values and one behind the
    attention. In training mmsegmentation runs the auxiliary head twice, with two masks of dropout; here the
    regions are the logits that have the auxiliary loss. Coarse logits of another size are resized.

    Args:
        out_channels: channels of the features and of the output.
        key_channels: channels of queries, keys and values.
        fuse: mix both by a 1x1 block (Eq. 11); False leaves it to ``MODEL.SEM_SEG_HEAD.PROJECTION``.
    """

    reads_coarse_logits = True

    head_keys = {"key_channels": "OCR_KEY_CHANNELS", "fuse": "OCR_FUSE"}

    @configurable
    def __init__(
        self, *, in_channels: int, out_channels: int, key_channels: int, norm: str, fuse: bool = True
    ) -> None:
        super().__init__()
        check_head_key("OCR_KEY_CHANNELS", key_channels, key_channels >= 1, "1 or more")
        self.out_channels = out_channels if fuse else 2 * out_channels
        self.bottleneck = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.query = nn.Sequential(
            conv_norm_relu(out_channels, key_channels, 1, norm),
            conv_norm_relu(key_channels, key_channels, 1, norm),
        )
        # These two read one value a class.
        self.key = nn.Sequential(
            pooled_conv_norm_relu(out_channels, key_channels, norm),
            pooled_conv_norm_relu(key_channels, key_channels, norm),
        )
        self.value = pooled_conv_norm_relu(out_channels, key_channels, norm)
        self.expand = conv_norm_relu(key_channels, out_channels, 1, norm)
        self.fuse = conv_norm_relu(2 * out_channels, out_channels, 1, norm) if fuse else nn.Identity()

    def forward(self, x: Tensor, coarse: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Joins what each pixel gets of the regions to its feature, ``(N, self.out_channels, h, w)``.

        ``x`` is ``(N, in_channels, h, w)``, ``coarse`` the auxiliary head's logits ``(N, K, h', w')``.
        """
        x = self.bottleneck(x)
        regions = gather_regions(x, resize_to(coarse, x))
        context = attend_to_regions(self.query(x), self.key(regions), self.value(regions))
        return self.fuse(torch.cat([self.expand(context), x], dim=1)), {}


def gather_regions(features: Tensor, coarse: Tensor) -> Tensor:
    """Means of the features over soft object regions (Eq. 8): the softmax of each class over all pixels.

    Of features ``(N, C, h, w)`` and logits ``(N, K, h, w)``: ``(N, C, K, 1)``, the classes are rows of an
    image one pixel wide.
    """
    shares = coarse.flatten(2).softmax(dim=2)
    return torch.bmm(features.flatten(2), shares.transpose(1, 2)).unsqueeze(3)


def attend_to_regions(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of pixels on regions (Eq. 9 and 10).

    In plain products, with the pixels last, as convolutions leave them: on so few keys that takes about three
    quarters of the time of ``F.scaled_dot_product_attention``, for which they would have to be copied.

    The query is ``(N, D, h, w)``, as is the result; key and value are ``(N, D, K, 1)``.
    """
    keys = key.flatten(2).transpose(1, 2) * key.shape[1] ** -0.5
    relations = torch.bmm(keys, query.flatten(2)).softmax(dim=1)
    return torch.bmm(value.flatten(2), relations).unflatten(2, query.shape[-2:])
