"""Labels and scores of images under an inference protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from regseg_d2.data.resampling import resize_image, scaled_size
from regseg_d2.evaluation.inference.argmax import argmax_of_maps
from regseg_d2.evaluation.inference.maps import MeanProbabilities, ResizedMaps, ScoreMaps, log_sum_exp
from regseg_d2.evaluation.inference.network import Network
from regseg_d2.evaluation.inference.protocol import InferenceProtocol
from regseg_d2.evaluation.inference.sliding import slide


class Predictor:
    """Predicts images one by one; what stands beside an image in a batch does not matter.

    Args:
        model: a segmentor that takes Detectron2's inputs, not wrapped. It is in evaluation mode during a
            prediction, and left as it was.
        protocol: what to do.

    Raises:
        ConfigError: the model cannot follow the protocol.
    """

    def __init__(self, model: nn.Module, protocol: InferenceProtocol) -> None:
        self.model = model
        self.protocol = protocol
        self._network = Network(model, protocol)

    @property
    def gives_probabilities(self) -> bool:
        """Whether :meth:`scores` are probabilities, or scores of classified masks, and not logits."""
        return self.protocol.averages_probabilities or self._network.gives_probabilities

    def __call__(
        self,
        batched_inputs: Sequence[dict[str, Any]],
        *,
        probabilities: bool = False,
        confidence: bool = False,
    ) -> list[dict[str, Any]]:
        """Predicts the labels of images; ``K x H x W`` scores are held only where they are asked for.

        Args:
            batched_inputs: dicts with "image" ``(3, h, w)``, and "height" and "width" of the prediction
                where these differ.
            probabilities: give those of all classes, see :meth:`probabilities`.
            confidence: give the probability of the label.

        Returns:
            For each image a dict with "sem_seg_labels" ``(H, W)``, on the device of the logits, uint8 for up
            to 256 classes and int32 for more, and "num_classes"; and with "probabilities" ``(K, H, W)`` and
            "confidence" ``(H, W)`` where they are asked for. All are of one forward pass.
        """
        with inference_context(self.model), torch.no_grad():
            results = []
            for maps in map(self._maps, batched_inputs):
                result = {"sem_seg_labels": argmax_of_maps(maps), "num_classes": maps.num_classes}
                if probabilities:
                    result["probabilities"] = self._normalized(maps.all_classes())
                if confidence:
                    result["confidence"] = self._confidence(maps)
                results.append(result)
            return results

    def scores(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Predicts the scores of all classes; the labels above are their ``argmax``, bit for bit.

        Returns:
            For each image a dict with "sem_seg" ``(K, H, W)``: logits, or what :attr:`gives_probabilities`
            says.
        """
        with inference_context(self.model), torch.no_grad():
            return [{"sem_seg": maps.all_classes()} for maps in map(self._maps, batched_inputs)]

    def probabilities(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Predicts the probabilities of all classes: :meth:`scores` that sum to 1 at each pixel.

        Of a network that classifies masks they are its scores over their sum.
        """
        scores = (each["sem_seg"].float() for each in self.scores(batched_inputs))
        return [{"sem_seg": self._normalized(each)} for each in scores]

    def _normalized(self, scores: Tensor) -> Tensor:
        if self._network.gives_probabilities:
            return scores / scores.sum(dim=0).clamp(min=torch.finfo(scores.dtype).tiny)
        return scores if self.protocol.averages_probabilities else scores.softmax(dim=0)

    def _confidence(self, maps: ScoreMaps) -> Tensor:
        """Largest probability of each pixel ``(H, W)``, without ever holding all classes."""
        best = torch.full(maps.size, -torch.inf, device=maps.device)
        total = torch.zeros(maps.size, device=maps.device)
        for classes in maps.chunks():
            part = maps(classes)
            best = torch.maximum(best, part.amax(dim=0))
            if self._network.gives_probabilities:
                total += part.sum(dim=0)
        if self._network.gives_probabilities:
            return best / total.clamp(min=torch.finfo(total.dtype).tiny)
        return best if self.protocol.averages_probabilities else (best - log_sum_exp(maps)).exp()

    def _maps(self, sample: dict[str, Any]) -> ScoreMaps:
        image = sample["image"]
        size = (int(sample.get("height", image.shape[-2])), int(sample.get("width", image.shape[-1])))
        protocol = self.protocol
        views = []
        for scale in protocol.scales:
            scaled = scale_image(image, scale)
            plain = self._view(scaled, size)
            views.append((plain, self._view(scaled.flip(-1), size) if protocol.flip else None))
        if not protocol.averages_probabilities:
            return views[0][0]
        return MeanProbabilities(views, are_logits=not self._network.gives_probabilities)

    def _view(self, image: Tensor, size: tuple[int, int]) -> ScoreMaps:
        protocol = self.protocol
        maps: ScoreMaps
        if protocol.mode == "slide":
            maps = slide(self._network, image, protocol.crop_size, protocol.stride, protocol.tile_batch)
        else:
            maps = self._network(image.unsqueeze(0))[0]
        return ResizedMaps(maps, size)


def scale_image(image: Tensor, scale: float) -> Tensor:
    """Resizes an image as training does.

    Args:
        image: ``(3, H, W)`` of uint8.
        scale: factor; 1 gives the image itself.

    Returns:
        ``(3, round(scale H), round(scale W))`` of uint8.
    """
    if scale == 1:
        return image
    size = scaled_size(image.shape[-2], image.shape[-1], scale)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    resized = resize_image(pixels, size)
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).to(image.device)


def build_predictor(cfg: CfgNode, model: nn.Module) -> Predictor:
    """Builds the predictor of a config's protocol.

    Raises:
        ConfigError: a value that cannot be used.
    """
    return Predictor(model, InferenceProtocol.from_config(cfg))
