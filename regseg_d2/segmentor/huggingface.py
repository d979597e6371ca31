"""A meta-architecture around transformers: its segmentation networks in this engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.modeling.huggingface.families import (
    family_of,
    padded_size,
    size_divisibility,
    task_arguments,
)
from regseg_d2.modeling.huggingface.networks import (
    build_network,
    classifies_masks,
    load_config,
    pretrained_weights,
)
from regseg_d2.modeling.huggingface.targets import mask_targets, occurring_classes
from regseg_d2.modeling.layers import pad_to
from regseg_d2.modeling.norms import convert_batch_norm, resolve_auto_norm
from regseg_d2.ops.mask_classification import semantic_scores
from regseg_d2.segmentor.meta_architecture import RegularizationMixin
from regseg_d2.segmentor.places import Classifier
from regseg_d2.segmentor.targets import pad_labels, semantic_labels


class HuggingFaceNetwork(nn.Module):
    """A segmentation network of transformers that speaks Detectron2's protocol.

    Args:
        network: the network, from ``images, labels`` or ``images, mask_labels, class_labels`` to its output.
        pixel_mean: mean of the images' channels.
        pixel_std: their standard deviation.
        num_classes: number of classes K.
        ignore_index: label of void pixels.
        divisor: images are padded to multiples of it; 0 is what the network's config says.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_classes: int,
        ignore_index: int,
        divisor: int = 0,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.divisor = divisor or size_divisibility(self.network.config)
        self.family = family_of(self.network.config)
        self.classifies_masks = classifies_masks(network)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``MODEL.HUGGINGFACE`` and builds the network, with random weights.

        Raises:
            ConfigError: there is no such network, or a key that it does not know is set.
        """
        cfg, node, head = resolve_auto_norm(cfg), cfg.MODEL.HUGGINGFACE, cfg.MODEL.SEM_SEG_HEAD
        if head.CLASS_WEIGHTS or head.LOSS_TYPE != "cross_entropy":
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS is {list(head.CLASS_WEIGHTS)} and LOSS_TYPE "
                f"{head.LOSS_TYPE!r}; networks of transformers have losses of their own: expected [] and "
                "'cross_entropy'."
            )
        config = load_config(
            node.NAME,
            node.MODEL_TYPE,
            plain(node.CONFIG),
            num_classes=head.NUM_CLASSES,
            ignore_value=head.IGNORE_VALUE,
        )
        return {
            "network": convert_batch_norm(build_network(config), cfg.MODEL.NORM),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": head.NUM_CLASSES,
            "ignore_index": head.IGNORE_VALUE,
            "divisor": node.SIZE_DIVISIBILITY,
        }

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Trains or predicts.

        Args:
            batched_inputs: see Detectron2's ``SemanticSegmentor``.

        Returns:
            In training ``{"loss_sem_seg": scalar}``, the network's own loss; in evaluation for each image
            ``{"sem_seg": (K, height, width)}``: logits, or the scores of a network that classifies masks.
        """
        images = [sample["image"].to(self.device) for sample in batched_inputs]
        pixels = self._pixels(images)
        if self.training:
            output = self.network(pixels, **self._targets(batched_inputs, pixels))
            return {"loss_sem_seg": output.loss.reshape(())}
        logits = F.interpolate(
            self._logits(pixels), size=pixels.shape[-2:], mode="bilinear", align_corners=False
        )
        results = []
        for result, image, sample in zip(logits, images, batched_inputs, strict=True):
            height, width = (
                sample.get(key, image.shape[axis]) for key, axis in (("height", -2), ("width", -1))
            )
            results.append({"sem_seg": sem_seg_postprocess(result, image.shape[-2:], height, width)})
        return results

    def with_classes(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Adds labels, and the classes that occur in each image while they are still on the CPU."""
        if not self.classifies_masks:
            return batched_inputs
        return [
            sample if "occurring_classes" in sample else self._with_classes(sample)
            for sample in batched_inputs
        ]

    def _with_classes(self, sample: dict[str, Any]) -> dict[str, Any]:
        labels = semantic_labels(sample, self.ignore_index)
        return {**sample, "sem_seg": labels, "occurring_classes": occurring_classes(labels, self.num_classes)}

    def _targets(self, batched_inputs: list[dict[str, Any]], pixels: Tensor) -> dict[str, Any]:
        batched_inputs = self.with_classes(batched_inputs)
        labels = [semantic_labels(sample, self.ignore_index).to(self.device) for sample in batched_inputs]
        padded = pad_labels(labels, pixels.shape[-2:], self.ignore_index).long()
        arguments: dict[str, Any] = task_arguments(self.network.config, pixels)
        if not self.classifies_masks:
            return {**arguments, "labels": padded}
        classes = [sample["occurring_classes"] for sample in batched_inputs]
        masks, ids = mask_targets(padded, classes, pixels.dtype)
        return {**arguments, "mask_labels": list(masks), "class_labels": list(ids)}

    def _pixels(self, images: Sequence[Tensor]) -> Tensor:
        """Normalizes images, and pads them at the right and below to one size: ``(N, 3, H, W)``."""
        normalized = [(image - self.pixel_mean) / self.pixel_std for image in images]
        height, width = (max(image.shape[axis] for image in normalized) for axis in (-2, -1))
        size = padded_size(self.network.config, self.divisor, height, width)
        return torch.stack([pad_to(image, size) for image in normalized])

    def _logits(self, pixels: Tensor) -> Tensor:
        """Logits, or scores of a network that classifies masks, at the size that the network gives."""
        output = self.network(pixels, **task_arguments(self.network.config, pixels))
        if not self.classifies_masks:
            return output.logits
        masks = output.masks_queries_logits
        if self.family.stretches_masks:
            masks = F.interpolate(masks, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return semantic_scores(output.class_queries_logits, masks)


@META_ARCH_REGISTRY.register()
class HuggingFaceSegmentor(RegularizationMixin, HuggingFaceNetwork):
    """A segmentation network of transformers with regularizers: ``MODEL.HUGGINGFACE`` says which."""

    reads_images = "network"
    #: Networks of transformers have parameters that no loss reaches, such as the norm of a stage that is not
    #: used.
    has_unused_parameters = True
    weights_hint = "For trained ones set MODEL.HUGGINGFACE.NAME, to a name of the hub or a folder."

    def initial_weights(self, cfg: CfgNode) -> tuple[str, dict[str, Tensor]] | None:
        """Reads the weights of ``MODEL.HUGGINGFACE.NAME``; see docs/extending.md.

        Returns:
            The name and the tensors; None where the config names none.

        Raises:
            UserError: they cannot be had, or read.
        """
        node = cfg.MODEL.HUGGINGFACE
        if not (node.NAME and node.PRETRAINED):
            return None
        weights = pretrained_weights(node.NAME, self.network.config)
        return node.NAME, {f"network.{name}": value for name, value in weights.items()}

    @property
    def backbone_prefix(self) -> str:
        """How the names of the backbone's tensors begin; where it has none of its own, those of all."""
        return f"network.{self.family.backbone}." if self.family.backbone else "network."

    @classmethod
    def find_classifier(cls, parts: Mapping[str, Any]) -> Classifier:
        """Where ``CLASSIFIER: auto`` is in the network of transformers."""
        network = parts["network"]
        family = family_of(network.config)
        features = f"network.{family.features}" if family.features else ""
        if classifies_masks(network):
            return Classifier("network:masks", features)
        return Classifier(f"network.{family.classifier}" if family.classifier else "", features)

    @classmethod
    def run_parts(cls, parts: nn.Module, images: Tensor) -> Any:
        """Runs the network."""
        network: Any = parts.get_submodule("network")
        return network(images, **task_arguments(network.config, images))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Runs the network; in training with the losses of the regularizers."""
        return super().forward(self.with_classes(batched_inputs) if self.training else batched_inputs)

    @property
    def gives_feature_logits(self) -> bool:
        """True: :meth:`feature_logits` can be called."""
        return True

    @property
    def gives_probabilities(self) -> bool:
        """Whether the logits are scores already, which several views of an image are averaged of."""
        return self.classifies_masks

    def feature_logits(self, images: Tensor, *, pad: bool = True) -> Tensor:
        """Runs the network without the last step, which stretches the logits over the image.

        Args:
            images: ``(N, 3, H, W)``, as in the inputs of :meth:`forward`.
            pad: pad as :meth:`forward` does.

        Returns:
            Logits or scores ``(N, K, h, w)``; with ``pad`` the padded images are a whole number of times as
            large.
        """
        pixels = (images.to(self.device) - self.pixel_mean) / self.pixel_std
        size = (pixels.shape[-2], pixels.shape[-1])
        if pad:
            pixels = pad_to(pixels, self.padded_size(*size))
        elif self.family.shape != "any" and size != (padded := self.padded_size(*size)):
            raise UserError(
                f"TEST.PADDING is 'none', and {self.network.config.model_type} takes {self.family.shape} "
                f"images, here {padded[0]} x {padded[1]}; got {size[0]} x {size[1]}. Set it to 'stride'."
            )
        logits = self._logits(pixels)
        full, small = pixels.shape[-2:], logits.shape[-2:]
        scale = full[0] // small[0]
        if pad and (scale * small[0], scale * small[1]) != (full[0], full[1]):
            logits = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
        return logits

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the input that an image of this size is padded to."""
        return padded_size(self.network.config, self.divisor, height, width)

    def feature_stride(self, logits: Tensor, size: tuple[int, int]) -> int:
        """How many times as large as its feature logits the padded input of an image is."""
        return self.padded_size(*size)[0] // logits.shape[-2]


def plain(node: Any) -> Any:
    """A config node and all in it as dicts."""
    return {key: plain(value) for key, value in node.items()} if isinstance(node, dict) else node
