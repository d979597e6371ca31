"""Any timm network that can return its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from regseg_d2.errors import ConfigError
from regseg_d2.modeling.backbones.pretrained import load_pretrained
from regseg_d2.modeling.norms import convert_batch_norm
from regseg_d2.suggestions import did_you_mean


class TimmBackbone(Backbone):
    """A timm network with ``features_only`` as a Detectron2 backbone.

    Features are named after the ResNet stage of the same depth: ``res1`` is the one after one halving
    of the image, ``res5`` the one after five (fewer where the network is dilated).

    Args:
        name: a name of ``timm.list_models()``.
        output_stride: stride of the deepest feature.
        out_features: ``res1`` to ``res5``.
        in_channels: channels of the image.
        norm: norm that replaces the network's batch norms, see ``convert_batch_norm``.
        pretrained: where weights come from, see ``pretrained.py``; empty for random weights.

    Raises:
        ConfigError: if timm does not know the network, or cannot give it these features or stride.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        output_stride: int,
        out_features: Sequence[str],
        in_channels: int = 3,
        norm: str = "BN",
        pretrained: str = "",
    ) -> None:
        super().__init__()
        stages = ("res1", "res2", "res3", "res4", "res5")
        if not timm.is_model(name):
            raise ConfigError(
                f"MODEL.TIMM.NAME: timm has no {name!r}{did_you_mean(name, timm.list_models())}"
            )
        if unknown := set(out_features) - set(stages):
            raise ConfigError(f"MODEL.TIMM.OUT_FEATURES: unknown {sorted(unknown)}; expected among {stages}")
        indices = tuple(i for i, stage in enumerate(stages) if stage in out_features)
        try:
            network = timm.create_model(
                name,
                features_only=True,
                output_stride=output_stride,
                out_indices=indices,
                in_chans=in_channels,
                pretrained=False,
            )
        except (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"timm cannot build {name!r} with MODEL.TIMM.OUTPUT_STRIDE {output_stride} and OUT_FEATURES "
                f"{list(out_features)}: {error}"
            ) from error
        if pretrained:
            load_pretrained(network, name, pretrained, in_channels)
        self.network = convert_batch_norm(network, norm)
        self._out_features = [stages[i] for i in indices]
        info = network.feature_info
        self._out_feature_channels = dict(zip(self._out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(self._out_features, info.reduction(), strict=True))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Reads ``MODEL.TIMM`` and ``MODEL.NORM``."""
        options = cfg.MODEL.TIMM
        return {
            "name": options.NAME,
            "output_stride": options.OUTPUT_STRIDE,
            "out_features": options.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "norm": cfg.MODEL.NORM,
            # A checkpoint of the whole model replaces them: do not ask for the file then.
            "pretrained": "" if cfg.MODEL.WEIGHTS else options.PRETRAINED,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps an image ``(N, 3, H, W)`` to features by name."""
        return dict(zip(self._out_features, self.network(x), strict=True))

    @property
    def size_divisibility(self) -> int:
        """Largest stride: padded to it, features and image cover the same area exactly."""
        return max(self._out_feature_strides.values())


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Builds the backbone of ``MODEL.TIMM``; raises ConfigError, see :class:`TimmBackbone`."""
    return TimmBackbone(cfg, input_shape)
