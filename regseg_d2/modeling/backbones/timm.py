"""Any timm network that can return its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import DropPath
from torch import Tensor, nn

from regseg_d2.common.dry_run import takes
from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.modeling.backbones.checkpointing import enable_checkpointing
from regseg_d2.modeling.backbones.freezing import frozen_modules
from regseg_d2.modeling.backbones.pretrained import load_pretrained
from regseg_d2.modeling.backbones.rescaling import RescaledFeatures
from regseg_d2.modeling.backbones.timm_conventions import apply_convention
from regseg_d2.modeling.backbones.timm_features import (
    ONE_SIZE,
    NormedFeatures,
    choose_features,
    create,
    creation_options,
    drop_unused_blocks,
    family,
    fixed_size,
    has_one_stride,
    known_features,
    size_multiple,
)
from regseg_d2.modeling.norms import convert_batch_norm

OUT_NORMS = ("", "LN", "final")


class TimmBackbone(Backbone):
    """A timm network with ``features_only`` as a Detectron2 backbone.

    Features are named after the ResNet stage of the same depth: ``res1`` is the one after one halving
    of the image, ``res5`` the one after five (fewer where the network is dilated). Of networks whose blocks
    all have one stride (plain vision transformers), ``out_blocks`` are put out under these names.

    Its weights are random; a training loads ``MODEL.TIMM.PRETRAINED`` when it starts.

    Args:
        name: a name of ``timm.list_models()``.
        output_stride: stride of the deepest feature; 32 leaves the network as it is.
        out_features: ``res1`` to ``res5``.
        in_channels: channels of the image.
        norm: norm that replaces the network's batch norms, see ``convert_batch_norm``.
        options: keyword arguments for ``timm.create_model``.
        drop_path: largest probability of stochastic depth, that of the last block.
        checkpoint: compute activations again in the backward pass instead of keeping them.
        freeze_at: number of stages that are not trained, the stem being the first, see ``freezing.py``.
        out_norm: ``"LN"`` gives each feature a layer norm of its own, as mmsegmentation's Swin and ConvNeXt;
            ``"final"`` puts each through the network's own last norm, as DINOv2 and DINOv3 are evaluated
            (networks whose blocks all have one stride).
        out_blocks: see above; empty is evenly spaced.
        convention: ``"timm"`` or ``"mmseg"``, see ``timm_conventions.py``.
        rescale: bring the four features of a network whose blocks all have one stride to four times, twice,
            once and half their size, see :class:`RescaledFeatures`.

    Raises:
        ConfigError: if timm does not know the network, or cannot give it what is asked.
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
        options: Mapping[str, Any] | None = None,
        drop_path: float = 0.0,
        checkpoint: bool = False,
        freeze_at: int = 0,
        out_norm: str = "",
        out_blocks: Sequence[int] = (),
        convention: str = "timm",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(
                f"MODEL.TIMM.NAME: timm has no {name!r}{did_you_mean(name, timm.list_models())}"
            )
        check_key("MODEL.TIMM.OUT_NORM", out_norm, out_norm in OUT_NORMS, f"one of {OUT_NORMS}")
        arguments = creation_options(
            name,
            output_stride=output_stride,
            in_channels=in_channels,
            options=options or {},
            drop_path=drop_path,
        )
        known = known_features(name, arguments)
        features = choose_features(name, known, out_features, out_blocks)
        final_norm = out_norm == "final"
        _check_one_stride(name, known, final_norm=final_norm, rescale=rescale, count=len(features))
        selection: dict[str, Any] = {"feature_cls": NormedFeatures} if final_norm else {}
        network = create(
            name, arguments, out_indices=tuple(feature.index for feature in features), **selection
        )
        if final_norm and isinstance(network.model.norm, nn.Identity):
            raise ConfigError(f"MODEL.TIMM.OUT_NORM is 'final', and {name!r} has no last norm; expected ''")
        drop_unused_blocks(network, features)
        _check_drop_path(network, name, arguments)
        self.timm_name = name
        self._arguments = arguments
        apply_convention(network, convention)
        self.network = convert_batch_norm(network, norm)
        if out_norm == "LN":
            eps = next((m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)), 1e-5)
            norms = {feature.name: OutNorm(feature.channels, eps) for feature in features}
            self.out_norms = nn.ModuleDict(norms)

        self._out_features = [feature.name for feature in features]
        self._out_feature_channels = {feature.name: feature.channels for feature in features}
        divisors = [feature.stride for feature in features]
        self._out_feature_strides: dict[str, int | float] = {f.name: f.stride for f in features}
        if rescale:
            self.rescaled = convert_batch_norm(RescaledFeatures(features[0].channels), norm)
            scaled = RescaledFeatures.strides(features[0].stride)
            self._out_feature_strides = dict(zip(self._out_features, scaled, strict=True))
        self._size_divisibility = size_multiple(network, name, known, max(divisors))
        self._fixed_size = fixed_size(network, name, arguments)
        self._channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        self._recomputation = enable_checkpointing(self.network, name) if checkpoint else None
        self._frozen = self._freeze(freeze_at, frozen_modules(self.network, freeze_at, known, features))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Reads ``MODEL.TIMM``, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.NORM``."""
        options = cfg.MODEL.TIMM
        return {
            "name": options.NAME,
            "output_stride": options.OUTPUT_STRIDE,
            "out_features": options.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "norm": cfg.MODEL.NORM,
            "options": _plain(options.OPTIONS),
            "drop_path": options.DROP_PATH,
            "checkpoint": options.CHECKPOINT,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "out_norm": options.OUT_NORM,
            "out_blocks": options.OUT_BLOCKS,
            "convention": options.CONVENTION,
            "rescale": options.RESCALE,
        }

    def load_pretrained(self, path: str, *, trust_pickle: bool = False) -> None:
        """Loads ImageNet weights; for the arguments and errors see ``pretrained.load_pretrained``."""
        load_pretrained(self.network, self.timm_name, path, self._arguments, trust_pickle=trust_pickle)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps an image ``(N, 3, H, W)`` to features ``(N, C, h, w)`` by name."""
        guard = self._recomputation
        with nullcontext() if guard is None else guard.first_pass():
            features = self._read(x)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        if hasattr(self, "rescaled"):
            features = self.rescaled(features)
        named = dict(zip(self._out_features, features, strict=True))
        if hasattr(self, "out_norms"):
            named = {name: self.out_norms[name](feature) for name, feature in named.items()}
        return named

    def _read(self, x: Tensor) -> list[Tensor]:
        size = (x.shape[-2], x.shape[-1])
        if self._fixed_size is None or size == self._fixed_size:
            return self.network(x)
        if family(self.timm_name) in ONE_SIZE:
            raise self._size_error(size, "its positions are those of one size")
        try:
            return self.network(x)
        except (AssertionError, RuntimeError, ValueError) as error:
            # Layers such as tables of positions are of one size, and timm's errors do not say what to do. Any
            # other error, of memory or of a hook, is not about the size, and stays as it is.
            other = x.new_empty(*x.shape[:2], *self._fixed_size, device="meta")
            if takes(self.network, x) or not takes(self.network, other):
                raise
            raise self._size_error(size, str(error)) from error

    def _size_error(self, size: tuple[int, int], reason: str) -> ConfigError:
        own = list(self._fixed_size or ())
        return ConfigError(
            f"MODEL.TIMM.NAME: {self.timm_name!r} is made for images of {own} pixels (height, width), and "
            f"got {list(size)}: {reason}. Train and test with that size "
            "(INPUT.CROP.SIZE; TEST.MODE slide with TEST.SLIDE.CROP_SIZE), or make it for another one: "
            f"MODEL.TIMM.OPTIONS.img_size [height, width], multiples of {self._size_divisibility}"
        )

    def train(self, mode: bool = True) -> TimmBackbone:
        """As ``nn.Module.train``, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in getattr(self, "_frozen", ()):
            module.training = False
        return self

    @property
    def size_divisibility(self) -> int:
        """Padded to a multiple of it, features and image cover the same area exactly."""
        return self._size_divisibility

    def _freeze(self, freeze_at: int, modules: list[nn.Module]) -> list[nn.Module]:
        """Adds the norms of the frozen stages' features to their modules."""
        deepest = int(self._out_features[-1].removeprefix("res"))
        if isinstance(self.network, NormedFeatures) and freeze_at >= deepest:
            modules.append(self.network.model.norm.requires_grad_(False))
        if freeze_at and hasattr(self, "out_norms"):
            for name, norm in self.out_norms.items():
                if int(name.removeprefix("res")) <= freeze_at:
                    norm.requires_grad_(False)
                    modules.append(norm)
        for module in modules:
            module.training = False
        return modules


class OutNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(N, C, h, w)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each pixel of ``(N, C, h, w)``."""
        x = input.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Builds the backbone of ``MODEL.TIMM``; raises ConfigError, see :class:`TimmBackbone`."""
    return TimmBackbone(cfg, input_shape)


def _check_drop_path(network: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
    """Makes sure that there is as much stochastic depth as was asked for, and not a network's own default."""
    paths = [module for module in network.modules() if isinstance(module, DropPath)]
    if "drop_path_rate" not in arguments:
        for path in paths:
            path.drop_prob = 0.0
    elif arguments["drop_path_rate"] and not any(path.drop_prob for path in paths):
        raise ConfigError(
            f"MODEL.TIMM.DROP_PATH is {arguments['drop_path_rate']}, and {name!r} has no block that could be "
            "dropped; expected 0"
        )


def _check_one_stride(
    name: str, known: Sequence[Mapping[str, Any]], *, final_norm: bool, rescale: bool, count: int
) -> None:
    """Makes sure that what plain vision transformers alone can do is asked of no other network."""
    for key, asked in (("OUT_NORM 'final'", final_norm), ("RESCALE True", rescale)):
        if asked and not has_one_stride(known):
            raise ConfigError(
                f"MODEL.TIMM.{key} is for networks whose blocks all have one stride, such as "
                f"'vit_small_patch14_dinov2', and {name!r} has stages"
            )
    if rescale and count != len(RescaledFeatures.factors):
        raise ConfigError(
            f"MODEL.TIMM.RESCALE True needs the four MODEL.TIMM.OUT_FEATURES res2 to res5; there are {count}"
        )


def _plain(value: Any) -> Any:
    """A config node as a dict, lists as the tuples that timm's options are."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(_plain(inner) for inner in value) if isinstance(value, (list, tuple)) else value
