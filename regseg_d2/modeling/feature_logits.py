"""A head's logits before its last step, which stretches them over the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.projects.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from torch import Tensor, nn

from regseg_d2.modeling.heads.context_head import ContextHead

Features = Mapping[str, Tensor]

# By forward method, so that a derived head counts as known until it brings a forward of its own. Each of
# these ends, at test, in a bilinear interpolation by the factor ``common_stride``.
_LAYERS: dict[Any, Callable[[Any, Features], Tensor]] = {
    ContextHead.forward: lambda head, features: head.layers(features)[0],
    SemSegFPNHead.forward: lambda head, features: head.layers(features),
    DeepLabV3PlusHead.forward: lambda head, features: head.layers(features),
    DeepLabV3Head.forward: lambda head, features: head.predictor(head.aspp(features[head.in_features[0]])),
}


def gives_feature_logits(head: nn.Module) -> bool:
    """Whether :func:`feature_logits` knows what a head does before it stretches its logits."""
    return type(head).forward in _LAYERS and not getattr(head, "decoder_only", False)


def feature_logits(head: nn.Module, features: Features) -> Tensor:
    """Logits ``(N, K, h, w)`` of a head in evaluation; its output is ``head.common_stride`` times as large.

    Of a head of which :func:`gives_feature_logits` is true; ``features`` are the backbone's, by name.
    """
    return _LAYERS[type(head).forward](head, features)
