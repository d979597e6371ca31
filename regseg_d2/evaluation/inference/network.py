"""The network as inference sees it: from images to logits that can be stretched over them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.evaluation.inference.maps import ScoreMaps, UpsampledLogits
from regseg_d2.evaluation.inference.protocol import InferenceProtocol

logger = logging.getLogger(__name__)


class Network:
    """Runs a meta-architecture on images of one size.

    Those of this package give their logits at feature size. Any other one of Detectron2 gives them at the
    size of the image, all classes at once, which takes as much memory as it always did.

    Attributes:
        gives_probabilities: what it gives are probabilities of classes already, not logits.

    Raises:
        ConfigError: the model cannot do without padding.
    """

    def __init__(self, model: nn.Module, protocol: InferenceProtocol) -> None:
        self.model: Any = model
        self._pads = protocol.padding == "stride"
        self._device = protocol.logits_device
        head = getattr(model, "sem_seg_head", None)
        self.gives_probabilities = getattr(model, "gives_probabilities", False)
        self._is_lean = getattr(model, "gives_feature_logits", False)
        if self._is_lean:
            return
        network = f"{type(model).__name__} with {type(head).__name__}"
        if not self._pads:
            raise ConfigError(
                f'TEST.PADDING is "none", and {network} gives no logits at feature size: set it to "stride".'
            )
        logger.warning(
            "%s gives its logits at full size only: memory for classes x height x width is needed, whatever "
            "is asked for.",
            network,
        )

    def __call__(self, images: Tensor) -> list[ScoreMaps]:
        """Runs the network; returns the logits of each image, ``(K, H, W)``.

        Args:
            images: ``(N, 3, H, W)``, as the mapper gives them.
        """
        size = (images.shape[-2], images.shape[-1])
        if not self._is_lean:
            outputs = self.model([{"image": image, "height": size[0], "width": size[1]} for image in images])
            return [UpsampledLogits(self._moved(output["sem_seg"].unsqueeze(0)), size) for output in outputs]
        logits = self._moved(self.model.feature_logits(images, pad=self._pads))
        scale = self.model.feature_stride(logits, size) if self._pads else None
        return [UpsampledLogits(logits[i : i + 1], size, scale) for i in range(len(logits))]

    def _moved(self, logits: Tensor) -> Tensor:
        return logits.float().to(self._device or logits.device)


def padded_size(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Height and width of the input that a segmentor pads an image of this size to."""
    if hasattr(model, "padded_size"):
        of_the_model: Any = model.padded_size
        return of_the_model(height, width)
    divisor = max(getattr(getattr(model, "backbone", None), "size_divisibility", 1), 1)
    return height + -height % divisor, width + -width % divisor


def cell_size(
    model: nn.Module, image: Sequence[int], cells: Sequence[int], label: Sequence[int]
) -> tuple[float, float]:
    """Height and width of a cell of a feature, in pixels of the label; the network sees the image padded.

    Args:
        model: the segmentor.
        image: height and width of its input, before padding.
        cells: of the feature.
        label: of the label, which may be another size of the same image.
    """
    height, width = (
        whole / count * shown / side
        for whole, count, shown, side in zip(
            padded_size(model, image[0], image[1]), cells, label, image, strict=True
        )
    )
    return height, width
