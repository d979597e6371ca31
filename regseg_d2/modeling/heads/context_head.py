"""The head that all networks of this package share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.common.suggestions import registered
from regseg_d2.modeling.heads.contexts.fcn import FCNAuxiliary
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE, FUSION, PROJECTION
from regseg_d2.modeling.layers import (
    check_head_key,
    conv_norm_relu,
    init_classifier,
    resize_to,
    separable_conv_norm_relu,
)
from regseg_d2.modeling.losses import SegmentationLoss

#: ``MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE`` for the feature that the context module reads.
FUSED = "fused"


@SEM_SEG_HEADS_REGISTRY.register()
class ContextHead(nn.Module):
    """fusion -> context -> augment -> (input) -> (low-level skip) -> projection -> dropout -> predictor.

    With a fusion all features become one. Without, the context module and the augment behind it read the
    feature of the largest stride; features of smaller stride are joined in the manner of DeepLabV3+ (Chen
    et al., ECCV 2018): narrowed by a 1x1 block, concatenated with the upsampled context, mixed by a 3x3
    block. Side outputs of context module, augment and auxiliary head get a loss each.

    Args:
        in_features: names of the features, by increasing stride; without a fusion the last one goes to
            ``context``.
        stride: stride of the logits, for upsampling at test.
        fusion: see ``FUSION``, or None.
        context: context module, see ``CONTEXT_MODULE``.
        concat_input: join what the context module read to what it and the augment made of it, as
            PSPNet's authors do in their FCN.
        skips: one :class:`LowLevelSkip` for each feature but the last, in the order of use (by
            decreasing stride).
        augment: see ``AUGMENT``, or None.
        projection: see ``PROJECTION``, or None.
        predictor_channels: channels that the classifier reads.
        num_classes: number of classes K.
        ignore_value: label of void pixels.
        dropout: dropout probability on the classifier's input.
        loss: loss of logits at feature size and labels; see ``SegmentationLoss``.
        loss_weight: weight of the main loss.
        auxiliary: auxiliary head, or None.
        auxiliary_feature: name of the feature it reads, or ``FUSED``, the context module's input.
        side_loss_weights: weight of the loss of each side output, by name.
        side_losses: loss of each side output that is no logits, by name.
    """

    #: The classifier reads what ``dropout`` puts out: the feature before it is that module's input.
    dropout_feeds_predictor = True

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        stride: int,
        fusion: nn.Module | None,
        context: nn.Module,
        concat_input: bool,
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
        side_losses: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.common_stride = stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.auxiliary_feature = auxiliary_feature
        self.side_loss_weights = dict(side_loss_weights)
        self.fusion = fusion
        self.context = context
        self.concat_input = concat_input
        self.skips = nn.ModuleList(skips)
        self.augment = augment
        self.projection = projection
        # Nothing between the context module and the dropout.
        self.context_comes_last = augment is None and projection is None and not (concat_input or skips)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(predictor_channels, num_classes, kernel_size=1)
        init_classifier(self.predictor)
        self.auxiliary = auxiliary
        self.loss = loss
        # Modules of the stages that they are the losses of: not to be registered a second time.
        self._side_losses = dict(side_losses)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Reads ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        features = list(head.IN_FEATURES)
        is_right = len(features) > 0 and len(features) == len({*features})
        check_key("MODEL.SEM_SEG_HEAD.IN_FEATURES", features, is_right, "one feature or more, each once")
        # Dilated stages share a stride: the later one has more channels, or else the larger name.
        shape_of = {name: _shape(input_shape, name, "IN_FEATURES") for name in features}
        names = sorted(shape_of, key=lambda name: (shape_of[name].stride, shape_of[name].channels, name))
        shapes = [input_shape[name] for name in names]

        def build(registry: Registry, key: str, *inputs: Any) -> Any:
            return registered(registry, head[key], f"MODEL.SEM_SEG_HEAD.{key}")(cfg, *inputs)

        fusion = augment = projection = None
        if head.FUSION:
            fusion = build(FUSION, "FUSION", shapes)
        deep_channels = fusion.out_channels if fusion else shapes[-1].channels
        context = build(CONTEXT_MODULE, "CONTEXT", deep_channels)
        stages, channels = [context], context.out_channels
        if head.AUGMENT:
            augment = build(AUGMENT, "AUGMENT", channels, deep_channels)
            entering = getattr(augment, "entering_channels", deep_channels)
            if entering != deep_channels:
                context = build(CONTEXT_MODULE, "CONTEXT", entering)
            stages = [context, augment]
            channels = augment.out_channels
        channels += deep_channels if head.CONCAT_INPUT else 0
        skips = _build_skips(cfg, [] if fusion else shapes[:-1], channels)
        channels = head.CONTEXT_CHANNELS if skips else channels
        if head.PROJECTION:
            projection = build(PROJECTION, "PROJECTION", channels)
            channels = projection.out_channels
        auxiliary = _build_auxiliary(cfg, input_shape, deep_channels)
        if auxiliary is None and getattr(context, "reads_coarse_logits", False):
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.CONTEXT {head.CONTEXT!r} reads the logits of an auxiliary head, and "
                "MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE is '': set it to a backbone feature, such as 'res4', "
                f"or to {FUSED!r}, the feature that the context module reads"
            )
        return {
            "in_features": names,
            "stride": shapes[0].stride,
            "fusion": fusion,
            "context": context,
            "concat_input": head.CONCAT_INPUT,
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
                ohem_min_kept_per=head.OHEM_MIN_KEPT_PER,
            ),
            "loss_weight": head.LOSS_WEIGHT,
            "auxiliary": auxiliary,
            "auxiliary_feature": head.AUX.IN_FEATURE,
            "side_loss_weights": {
                "aux": head.AUX.LOSS_WEIGHT,
                **_of_all(stages, "side_loss_weights"),
            },
            "side_losses": _of_all(stages, "side_losses"),
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
            if targets is None:
                raise ValueError("training needs labels")
            return None, self.losses(logits, side_logits, targets)
        scale = self.common_stride
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False), {}

    def layers(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, K, h, w)`` at feature size and, in training, side outputs by name."""
        deep = features[self.in_features[-1]]
        if self.fusion is not None:
            deep = self.fusion([features[name] for name in self.in_features])
        entering = deep
        before_context = getattr(self.augment, "before_context", None)
        if before_context is not None:
            entering = before_context(deep)
        x, side_outputs = self._context(features, entering)
        if self.augment is not None:
            x, augment_outputs = self.augment(x, entering)
            side_outputs = {**side_outputs, **augment_outputs}
        if self.concat_input:
            x = torch.cat([deep, x], dim=1)
        for skip, name in zip(self.skips, self.in_features[-2::-1], strict=False):
            x = skip(x, features[name])
        if self.projection is not None:
            x = self.projection(x)
        return self.predictor(self.dropout(x)), side_outputs

    def _context(self, features: Mapping[str, Tensor], deep: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The context module's output, and in training side outputs, the auxiliary head's among them."""
        reads_coarse = getattr(self.context, "reads_coarse_logits", False)
        if self.auxiliary is None or not (self.training or reads_coarse):
            return self.context(deep)
        coarse = self.auxiliary(deep if self.auxiliary_feature == FUSED else features[self.auxiliary_feature])
        x, side_outputs = self.context(deep, coarse) if reads_coarse else self.context(deep)
        return x, {**side_outputs, "aux": coarse} if self.training else {}

    def losses(
        self, logits: Tensor, side_outputs: Mapping[str, Tensor], targets: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses ``loss_sem_seg`` and ``loss_sem_seg_<name>`` of the side outputs."""
        losses = {"loss_sem_seg": self.loss_weight * self.loss(logits, targets)}
        for name, side in side_outputs.items():
            if name in self._side_losses:
                loss = self._side_losses[name](side, targets)
            else:
                loss = self.loss(side, targets)
            losses[f"loss_sem_seg_{name}"] = self.side_loss_weights[name] * loss
        return losses


class LowLevelSkip(nn.Module):
    """Joins a low-level feature to an upsampled one (Chen et al., ECCV 2018, figure 2).

    It is narrowed to ``project_channels``; the other feature has ``in_channels``.
    """

    def __init__(
        self,
        *,
        low_channels: int,
        project_channels: int,
        in_channels: int,
        out_channels: int,
        norm: str,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.project = conv_norm_relu(low_channels, project_channels, 1, norm)
        joined = project_channels + in_channels
        if separable:
            self.fuse = separable_conv_norm_relu(joined, out_channels, norm)
        else:
            self.fuse = conv_norm_relu(joined, out_channels, 3, norm)

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` and ``(N, C', h', w')`` to ``(N, out_channels, h', w')``."""
        low_level = self.project(low_level)
        x = resize_to(x, low_level)
        return self.fuse(torch.cat([low_level, x], dim=1))


def _of_all(stages: Sequence[nn.Module], name: str) -> dict[str, Any]:
    """Joins the dict of this name of all stages that have one."""
    return {key: value for stage in stages for key, value in getattr(stage, name, {}).items()}


def _build_skips(cfg: CfgNode, shapes: Sequence[ShapeSpec], channels: int) -> list[nn.Module]:
    """Low-level skips in the order of use: of shapes by increasing stride, the first beside ``channels``."""
    head = cfg.MODEL.SEM_SEG_HEAD
    if not shapes:
        return []
    narrow = list(head.PROJECT_CHANNELS)
    expected = (
        f"{len(shapes)} numbers, one for each of the low-level features, those of IN_FEATURES "
        f"{list(head.IN_FEATURES)} but the deepest"
    )
    check_head_key("PROJECT_CHANNELS", narrow, len(narrow) == len(shapes), expected)
    widths = [channels] + [head.CONTEXT_CHANNELS] * (len(shapes) - 1)
    return [
        LowLevelSkip(
            low_channels=shape.channels,
            project_channels=project_channels,
            in_channels=width,
            out_channels=head.CONTEXT_CHANNELS,
            norm=head.NORM,
            separable=head.SKIP_SEPARABLE,
        )
        for shape, project_channels, width in zip(shapes[::-1], narrow[::-1], widths, strict=True)
    ]


def _build_auxiliary(
    cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], fused_channels: int
) -> nn.Module | None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if not head.AUX.IN_FEATURE:
        return None
    channels = fused_channels
    if head.AUX.IN_FEATURE != FUSED:
        channels = _shape(input_shape, head.AUX.IN_FEATURE, "AUX.IN_FEATURE").channels
    return FCNAuxiliary(
        in_channels=channels,
        channels=head.AUX.CHANNELS or channels,
        num_convs=head.AUX.NUM_CONVS,
        kernel_size=head.AUX.KERNEL_SIZE,
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
