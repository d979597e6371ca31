"""The network that is exported: from a plain tensor of images to scores or labels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.evaluation.inference.argmax import label_dtype
from regseg_d2.modeling.layers import pad_to

#: What an exported network puts out: the class of each pixel ``(N, H, W)``; the scores of all classes at the
#: images' size ``(N, K, H, W)``; those at the stride of the head ``(N, K, h, w)``.
LABELS, SCORES, HEAD_SCORES = "labels", "scores", "head-scores"
OUTPUTS = (LABELS, SCORES, HEAD_SCORES)


class ExportedNetwork(nn.Module):
    """A segmentor from ``(N, 3, H, W)`` float32 images, 0 to 255, to one tensor.

    Normalization, padding to the size that the network needs, and the crop behind it are inside.

    Args:
        segmentor: a segmentor that gives logits at the head's size.
        output: one of ``OUTPUTS``.
        pads: pad as ``TEST.PADDING stride`` does; else the logits are stretched over the image.
        size: the only height and width that it takes; None takes any.

    Raises:
        ConfigError: the segmentor gives its logits at full size only.
    """

    def __init__(
        self, segmentor: nn.Module, output: str, *, pads: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        if not getattr(segmentor, "gives_feature_logits", False):
            head = type(getattr(segmentor, "sem_seg_head", None)).__name__
            raise ConfigError(
                f"{type(segmentor).__name__} with {head} cannot be exported: its logits before they are "
                "stretched over the image are not known. Those of ContextHead, of Detectron2's heads and of "
                "HuggingFaceSegmentor are."
            )
        self.segmentor: Any = segmentor
        self.output = output
        self.pads = pads
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``(N, 3, H, W)`` to what ``output`` says."""
        if self.size is not None:
            # Raises at any other size, in an exported file, too.
            images = images.expand(-1, 3, *self.size)
        maps = self.segmentor.feature_logits(images, pad=self.pads)
        if self.output == HEAD_SCORES:
            return maps
        size = (images.shape[-2], images.shape[-1])
        scores = stretched(maps, size, self.segmentor.feature_stride(maps, size) if self.pads else None)
        return as_labels(scores) if self.output == LABELS else scores


def stretched(maps: Tensor, size: tuple[int, int], stride: Any) -> Tensor:
    """Scores ``(N, K, h, w)`` of a head at the size of the images, ``(N, K, H, W)``.

    Args:
        maps: the scores.
        size: ``(H, W)``.
        stride: of the maps; what is beyond the images, their padding, is cut off. None stretches the maps
            over the images.
    """
    if stride is None:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    padded = [side * stride for side in maps.shape[-2:]]
    scores = F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
    return pad_to(scores, size)


def as_labels(scores: Tensor) -> Tensor:
    """The best class of each pixel, ``(N, K, H, W)`` to ``(N, H, W)``, as uint8 up to 256 classes."""
    return scores.argmax(dim=1).to(label_dtype(scores.shape[1]))
