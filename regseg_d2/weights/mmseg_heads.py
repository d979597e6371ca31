"""The names of mmsegmentation's decode heads, and ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regseg_d2.weights.renaming import Rule


def conv_module(theirs: str, ours: str) -> list[Rule]:
    """Rules for a convolution with norm: their ``ConvModule`` and our ``conv_norm_relu``.

    ``theirs`` is a pattern of the module's name, ``ours`` what replaces it.
    """
    return [
        (rf"{theirs}\.conv\.(weight|bias)", rf"{ours}.\g<{_last(theirs)}>"),
        (rf"{theirs}\.(?:bn|norm)\.(\w+)", rf"{ours}.norm.\g<{_last(theirs)}>"),
    ]


def _last(pattern: str) -> int:
    """Number of the group that follows those of a pattern."""
    return pattern.count("(") - pattern.count("(?") + 1


_CLASSIFIER: list[Rule] = [(r"conv_seg\.(\w+)", r"predictor.\1")]
_CONCATENATED = conv_module("conv_cat", "projection.conv")
_AROUND_ATTENTION = [
    *conv_module(r"convs\.0", "context.before"),
    *conv_module(r"convs\.1", "context.after"),
]


def _image_pool_last(weight: Tensor) -> Tensor:
    """ASPP's mixing weight ``(N, 5C, h, w)`` where the image pooling comes last, not first."""
    return torch.roll(weight, -(weight.shape[1] // 5), dims=1)


_STAGE_RULES: dict[str, list[Rule]] = {
    # Without a concatenation, the last block may be the projection here.
    "FCN": [
        *_CONCATENATED,
        *conv_module(r"convs\.(\d+)", r"context.convs.\1"),
        *conv_module(r"convs\.\d+", "projection.conv"),
    ],
    "PPM": [
        *conv_module(r"psp_modules\.(\d+)\.1", r"context.branches.\1"),
        *conv_module("bottleneck", "context.fuse"),
    ],
    # With ASPP_NARROW False.
    "ASPP": [
        *conv_module(r"image_pool\.1", "context.aspp.convs.4.1"),
        *conv_module(r"aspp_modules\.(\d)", r"context.aspp.convs.\1"),
        *conv_module(r"aspp_modules\.(\d)\.(depth|point)wise_conv", r"context.aspp.convs.\1.\2wise"),
        (r"bottleneck\.conv\.(weight)", r"projection.conv.\1", _image_pool_last),
        *conv_module("bottleneck", "projection.conv"),
        # Of DeepLabV3+, with ASPP_NARROW_KERNEL_SIZE 3; the rest is in deeplabv3plus_rules.
        (r"bottleneck\.conv\.(weight)", r"context.aspp.project.\1", _image_pool_last),
        *conv_module("bottleneck", "context.aspp.project"),
    ],
    "SemanticFPN": [
        # Behind each block stands an upsampling, which has a number there.
        *(
            r
            for k in range(5)
            for r in conv_module(rf"scale_heads\.(\d+)\.{2 * k}", rf"fusion.scales.\1.{k}")
        ),
    ],
    "Encoding": [
        *conv_module("bottleneck", "context.bottleneck"),
        *conv_module(r"enc_module\.encoding_project", "context.encoding_project"),
        (r"enc_module\.encoding\.0\.(codewords|scale)", r"context.encoding.\1"),
        (r"enc_module\.encoding\.1\.(\w+)", r"context.encoding_norm.\1"),
        (r"enc_module\.fc\.0\.(\w+)", r"context.factors.\1"),
        (r"se_layer\.(\w+)", r"context.se_predictor.\1"),
    ],
    "OCR": [
        *conv_module("bottleneck", "context.bottleneck"),
        *conv_module(r"object_context_block\.(query|key)_project\.(\d)", r"context.\1.\2"),
        *conv_module(r"object_context_block\.value_project", "context.value"),
        *conv_module(r"object_context_block\.out_project", "context.expand"),
        *conv_module(r"object_context_block\.bottleneck", "context.fuse"),
    ],
    "UPerFPN": [
        *conv_module(r"psp_modules\.(\d+)\.1", r"fusion.ppm.branches.\1"),
        *conv_module("bottleneck", "fusion.ppm.fuse"),
        *conv_module(r"lateral_convs\.(\d+)", r"fusion.laterals.\1"),
        *conv_module(r"fpn_convs\.(\d+)", r"fusion.smooths.\1"),
        *conv_module("fpn_bottleneck", "projection.conv"),
    ],
    "MLPFusion": [
        *conv_module(r"convs\.(\d+)", r"fusion.embeds.\1"),
        *conv_module("fusion_conv", "projection.conv"),
    ],
    "NonLocal": [
        *_CONCATENATED,
        *_AROUND_ATTENTION,
        (r"nl_block\.theta\.conv\.(\w+)", r"context.attention.query.\1"),
        (r"nl_block\.phi\.conv\.(\w+)", r"context.attention.key.\1"),
        (r"nl_block\.g\.conv\.(\w+)", r"context.attention.value.\1"),
        *conv_module(r"nl_block\.conv_out", "context.attention.out"),
    ],
    "CrissCross": [
        *_CONCATENATED,
        *_AROUND_ATTENTION,
        (r"cca\.(query|key|value)_conv\.(\w+)", r"context.attention.\1.\2"),
        (r"cca\.gamma\.scale", "context.attention.gamma"),
    ],
    "DualAttention": [
        *conv_module("pam_in_conv", "context.position_before"),
        (r"pam\.(query|key|value)_project\.(\w+)", r"context.position_attention.\1.\2"),
        (r"pam\.gamma\.scale", "context.position_attention.gamma"),
        *conv_module("pam_out_conv", "context.position_after"),
        (r"pam_conv_seg\.(\w+)", r"context.position_predictor.\1"),
        *conv_module("cam_in_conv", "context.channel_before"),
        (r"cam\.gamma\.scale", "context.channel_attention.gamma"),
        *conv_module("cam_out_conv", "context.channel_after"),
        (r"cam_conv_seg\.(\w+)", r"context.channel_predictor.\1"),
    ],
}

#: Rules for the tensors of a decode head, without its prefix, by ``MODEL.SEM_SEG_HEAD.FUSION`` + ``CONTEXT``.
HEAD_RULES = {stage: [*_CLASSIFIER, *rules] for stage, rules in _STAGE_RULES.items()}

#: Rules for the tensors of a neck, without its prefix, by ``MODEL.SEM_SEG_HEAD.FUSION``.
NECK_RULES: dict[str, list[Rule]] = {
    "SemanticFPN": [
        *conv_module(r"lateral_convs\.(\d+)", r"fusion.laterals.\1"),
        *conv_module(r"fpn_convs\.(\d+)", r"fusion.smooths.\1"),
    ],
    "JPU": [
        *conv_module(r"conv_layers\.(\d+)\.0", r"fusion.convs.\1"),
        *conv_module(r"dilation_layers\.(\d+)\.0\.(depth|point)wise_conv", r"fusion.branches.\1.\2wise"),
    ],
}

#: Rules for an auxiliary head, which is an FCN.
AUXILIARY_RULES: list[Rule] = [
    *_CLASSIFIER,
    *conv_module(r"convs\.(\d+)", r"context.convs.\1"),
]


def deeplabv3plus_rules(low_channels: int) -> list[Rule]:
    """Rules for what ``DepthwiseSeparableASPPHead`` has behind ASPP.

    The ``low_channels`` of the narrowed low-level feature come last there, first here.
    """
    fuse = r"sep_bottleneck\.0"
    return [
        *conv_module("c1_bottleneck", "skips.0.project"),
        (rf"{fuse}\.depthwise_conv\.conv\.(\w+)", r"skips.0.fuse.depthwise.\1", _first(low_channels, 0)),
        (rf"{fuse}\.depthwise_conv\.bn\.(\w+)", r"skips.0.fuse.depthwise.norm.\1", _first(low_channels, 0)),
        (rf"{fuse}\.pointwise_conv\.conv\.(weight)", r"skips.0.fuse.pointwise.\1", _first(low_channels, 1)),
        *conv_module(rf"{fuse}\.pointwise_conv", "skips.0.fuse.pointwise"),
        *conv_module(r"sep_bottleneck\.1\.(depth|point)wise_conv", r"projection.conv.\1wise"),
    ]


def _first(count: int, dim: int) -> Callable[[Tensor], Tensor]:
    """Puts the last ``count`` channels of a dimension first; a counter of batches has none."""
    return lambda value: torch.roll(value, count, dims=dim) if value.dim() else value
