"""The network of the project, and the same with regularizers."""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from regseg_d2.segmentor import RegularizationMixin


@META_ARCH_REGISTRY.register()
class MySegmentor(nn.Module):
    """Knows nothing of regularizers, calls its head ``decoder``, and computes its loss itself."""

    @configurable
    def __init__(self, *, backbone: nn.Module, decoder: nn.Module, ignore_value: int) -> None:
        super().__init__()
        self.backbone, self.decoder, self.ignore_value = backbone, decoder, ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts."""
        backbone, head = build_backbone(cfg), cfg.MODEL.SEM_SEG_HEAD
        decoder = nn.Sequential(
            nn.Conv2d(backbone.output_shape()["res4"].channels, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(64, head.NUM_CLASSES, 1),
        )
        return {"backbone": backbone, "decoder": decoder, "ignore_value": head.IGNORE_VALUE}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Returns losses in training, scores of each image in evaluation."""
        images = ImageList.from_tensors([sample["image"] / 64 - 2 for sample in batched_inputs]).tensor
        logits = self.decoder(self.backbone(images)["res4"])
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        if not self.training:
            return [{"sem_seg": scores} for scores in logits]
        labels = [sample["sem_seg"] for sample in batched_inputs]
        labels = ImageList.from_tensors(labels, pad_value=self.ignore_value).tensor
        return {"loss_sem_seg": F.cross_entropy(logits, labels, ignore_index=self.ignore_value)}


@META_ARCH_REGISTRY.register()
class MyRegularizedSegmentor(RegularizationMixin, MySegmentor):
    """The same network with the regularizers that the config names."""

    main_classifier = "decoder.4"  # reads the feature, and puts out the logits
