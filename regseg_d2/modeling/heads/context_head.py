"""The head that all networks of this package share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from regseg_d2.errors import ConfigError
from regseg_d2.modeling.heads.fcn import FCNAuxiliary
from regseg_d2.modeling.heads.layers import conv_norm_relu
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE, PROJECTION, build_stage
from regseg_d2.modeling.losses import SegmentationLoss


@SEM_SEG_HEADS_REGISTRY.register()
class ContextHead(nn.Module):
    """context -> augment -> (low-level skip) -> projection -> dropout -> predictor.

    The context module, and the augment behind it, read the feature of the largest stride. Features of
    smaller stride are joined in the manner of DeepLabV3+ (Chen et al., ECCV 2018): narrowed by a 1x1
    block, concatenated with the upsampled context, mixed by a 3x3 block. Side logits of context module,
    augment and auxiliary head get a loss each.

    Args:
        in_features: names of the features, by increasing stride; the last one goes to ``context``.
        stride: stride of the logits, for upsampling at test.
        context: context module, see ``CONTEXT_MODULE``.
        skips: one :class:`LowLevelSkip` for each feature but the last, in the order of use (by
            decreasing stride).
        augment: see ``AUGMENT``, or None.
        projection: see ``PROJECTION``, or None.
        predictor_channels: channels that the classifier reads.
        num_classes: number of classes K.
        ignore_value: label of void pixels.
        dropout: dropout probability on the classifier's input.
        loss: loss of logits and labels.
        loss_weight: weight of the main loss.
        auxiliary: auxiliary head, or None.
        auxiliary_feature: name of the feature it reads.
        side_loss_weights: weight of the loss of each side output, by name.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        stride: int,
        context: nn.Module,
        skips: Sequence[nn.Module],
        augment: nn.Module | None,
        projection: nn.Module | None,
        predictor_channels: int,
        num_classes: int,
        ignore_value: int,
        dropout: float,
        loss: nn.Module,
        loss_weight: float,
        auxiliary: nn.Module | None,
        auxiliary_feature: str,
        side_loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.common_stride = stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.auxiliary_feature = auxiliary_feature
        self.side_loss_weights = dict(side_loss_weights)
        self.context = context
        self.skips = nn.ModuleList(skips)
        self.augment = augment
        self.projection = projection
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(predictor_channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)
        self.auxiliary = auxiliary
        self.loss = loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Reads ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        names = sorted(head.IN_FEATURES, key=lambda name: _shape(input_shape, name, "IN_FEATURES").stride)
        low_level = names[:-1]
        if low_level and len(head.PROJECT_CHANNELS) != len(low_level):
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {list(head.PROJECT_CHANNELS)}; expected "
                f"{len(low_level)} numbers, one for each of the low-level features {low_level}"
            )
        deep = _shape(input_shape, names[-1], "IN_FEATURES")
        context = build_stage(CONTEXT_MODULE, "MODEL.SEM_SEG_HEAD.CONTEXT", head.CONTEXT, cfg, deep.channels)
        stages, channels = [context], context.out_channels
        augment = projection = None
        if head.AUGMENT:
            augment = build_stage(
                AUGMENT, "MODEL.SEM_SEG_HEAD.AUGMENT", head.AUGMENT, cfg, channels, deep.channels
            )
            stages.append(augment)
            channels = augment.out_channels
        skips = []
        for name, width in zip(low_level[::-1], list(head.PROJECT_CHANNELS)[::-1], strict=False):
            skips.append(
                LowLevelSkip(
                    low_channels=input_shape[name].channels,
                    project_channels=width,
                    in_channels=channels,
                    out_channels=head.CONTEXT_CHANNELS,
                    norm=head.NORM,
                )
            )
            channels = head.CONTEXT_CHANNELS
        if head.PROJECTION:
            projection = build_stage(
                PROJECTION, "MODEL.SEM_SEG_HEAD.PROJECTION", head.PROJECTION, cfg, channels
            )
            channels = projection.out_channels
        return {
            "in_features": names,
            "stride": input_shape[names[0]].stride,
            "context": context,
            "skips": skips,
            "augment": augment,
            "projection": projection,
            "predictor_channels": channels,
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "dropout": head.DROPOUT,
            "loss": SegmentationLoss(
                num_classes=head.NUM_CLASSES,
                ignore_value=head.IGNORE_VALUE,
                loss_type=head.LOSS_TYPE,
                class_weights=head.CLASS_WEIGHTS,
                ohem_threshold=head.OHEM_THRESHOLD,
                ohem_min_kept=head.OHEM_MIN_KEPT,
            ),
            "loss_weight": head.LOSS_WEIGHT,
            "auxiliary": _build_auxiliary(cfg, input_shape),
            "auxiliary_feature": head.AUX.IN_FEATURE,
            "side_loss_weights": _side_loss_weights(stages, head.AUX.LOSS_WEIGHT),
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Detectron2's protocol of a semantic segmentation head.

        Args:
            features: backbone features by name, ``(N, C, h, w)``.
            targets: labels ``(N, H, W)``, in training.

        Returns:
            In training ``(None, losses)``; at test ``(logits, {})`` with logits ``(N, K, H, W)`` at
            the size of the (padded) input.
        """
        logits, side_logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, side_logits, targets)
        scale = self.common_stride
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False), {}

    def layers(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, K, h, w)`` at feature size and, in training, side logits by name."""
        deep = features[self.in_features[-1]]
        x, side_logits = self.context(deep)
        if self.augment is not None:
            x, augment_logits = self.augment(x, deep)
            side_logits = {**side_logits, **augment_logits}
        for skip, name in zip(self.skips, self.in_features[-2::-1], strict=True):
            x = skip(x, features[name])
        if self.projection is not None:
            x = self.projection(x)
        if self.training and self.auxiliary is not None:
            side_logits = {**side_logits, "aux": self.auxiliary(features[self.auxiliary_feature])}
        return self.predictor(self.dropout(x)), side_logits

    def losses(self, logits: Tensor, side_logits: Mapping[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Weighted losses ``loss_sem_seg`` and ``loss_sem_seg_<name>`` of the side logits."""
        losses = {"loss_sem_seg": self.loss_weight * self.loss(_resize(logits, targets), targets)}
        for name, side in side_logits.items():
            weight = self.side_loss_weights[name]
            losses[f"loss_sem_seg_{name}"] = weight * self.loss(_resize(side, targets), targets)
        return losses


class LowLevelSkip(nn.Module):
    """Joins a low-level feature to an upsampled one (Chen et al., ECCV 2018, figure 2).

    Args:
        low_channels: channels of the low-level feature.
        project_channels: channels it is narrowed to.
        in_channels: channels of the other feature.
        out_channels: channels of the output.
        norm: name of the norm.
    """

    def __init__(
        self, *, low_channels: int, project_channels: int, in_channels: int, out_channels: int, norm: str
    ) -> None:
        super().__init__()
        self.project = conv_norm_relu(low_channels, project_channels, 1, norm)
        self.fuse = conv_norm_relu(project_channels + in_channels, out_channels, 3, norm)

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` and ``(N, C', h', w')`` to ``(N, out_channels, h', w')``."""
        low_level = self.project(low_level)
        x = F.interpolate(x, size=low_level.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([low_level, x], dim=1))


def _side_loss_weights(stages: Sequence[nn.Module], auxiliary: float) -> dict[str, float]:
    """Weights of the side losses by name: each stage knows those of its own."""
    weights = {"aux": auxiliary}
    for stage in stages:
        weights.update(getattr(stage, "side_loss_weights", {}))
    return weights


def _build_auxiliary(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module | None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.AUX.IN_FEATURE:
        return None
    return FCNAuxiliary(
        in_channels=_shape(input_shape, head.AUX.IN_FEATURE, "AUX.IN_FEATURE").channels,
        channels=head.AUX.CHANNELS,
        num_convs=head.AUX.NUM_CONVS,
        num_classes=head.NUM_CLASSES,
        dropout=head.AUX.DROPOUT,
        norm=head.NORM,
    )


def _shape(input_shape: Mapping[str, ShapeSpec], name: str, key: str) -> ShapeSpec:
    if name not in input_shape:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.{key}: the backbone puts out no feature {name!r}; "
            f"it has {sorted(input_shape)}"
        )
    return input_shape[name]


def _resize(logits: Tensor, targets: Tensor) -> Tensor:
    # In float32 or better: interpolation and loss in half precision lose the small differences.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
