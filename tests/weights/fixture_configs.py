"""Thin networks that the fixtures of ``make_fixtures.py`` are made of, in mmsegmentation's terms."""

from __future__ import annotations

from typing import Any

NORM = {"type": "BN", "requires_grad": True}
LOSS = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}


def head(**options: Any) -> dict[str, Any]:
    """A decode head of 7 classes."""
    common = {"num_classes": 7, "dropout_ratio": 0.1, "norm_cfg": NORM, "align_corners": False}
    return {**common, "loss_decode": LOSS, **options}


def resnet(**options: Any) -> dict[str, Any]:
    """A ResNet of stride 8 with three convolutions in its stem."""
    common = {"type": "ResNetV1c", "stem_channels": 8, "num_stages": 4, "out_indices": (0, 1, 2, 3)}
    strides = {"dilations": (1, 1, 2, 4), "strides": (1, 2, 1, 1), "contract_dilation": True}
    return {**common, **strides, "norm_cfg": NORM, "norm_eval": False, "style": "pytorch", **options}


def hrnet_stage(block: str, branches: int) -> dict[str, Any]:
    """One module with one block in each branch, 2, 4, 6 and 8 channels wide."""
    return {
        "num_modules": 1,
        "num_branches": branches,
        "block": block,
        "num_blocks": (1,) * branches,
        "num_channels": (2, 4, 6, 8)[:branches],
    }


def network(backbone: dict[str, Any], decode_head: Any, **options: Any) -> dict[str, Any]:
    """A whole network."""
    kind = "CascadeEncoderDecoder" if isinstance(decode_head, list) else "EncoderDecoder"
    stages = {"num_stages": len(decode_head)} if isinstance(decode_head, list) else {}
    common = {"data_preprocessor": None, "pretrained": None, "train_cfg": {}, "test_cfg": {"mode": "whole"}}
    return {"type": kind, "backbone": backbone, "decode_head": decode_head, **stages, **common, **options}


_PYRAMID = [4, 6, 8, 10]
_FCN_AUXILIARY = head(type="FCNHead", in_channels=16, in_index=2, channels=8, num_convs=1, concat_input=False)
_ATTENTION = {"in_channels": 16, "in_index": 0, "channels": 8, "num_classes": 5}
_SINGLE = {"in_channels": 16, "in_index": 0}

#: Backbones, and the size of the image that they read.
BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "resnet18_v1c_d8": (resnet(depth=18, base_channels=4), (33, 49)),
    "resnet18_v1d_d8": (resnet(depth=18, base_channels=4, type="ResNetV1d"), (33, 49)),
    "resnet50_v1c_d8": (resnet(depth=50, base_channels=2), (33, 49)),
    "resnet50_v1c_d16_mg": (
        resnet(depth=50, base_channels=2, dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), multi_grid=(1, 2, 4)),
        (33, 49),
    ),
    "hrnet_thin": (
        {
            "type": "HRNet",
            "norm_cfg": NORM,
            "norm_eval": False,
            "extra": {f"stage{i}": hrnet_stage("BOTTLENECK" if i == 1 else "BASIC", i) for i in (1, 2, 3, 4)},
        },
        (61, 91),
    ),
    "swin_thin": (
        {
            "type": "SwinTransformer",
            "embed_dims": 4,
            "window_size": 4,
            "mlp_ratio": 2,
            "depths": (2, 2, 2, 2),
            "num_heads": (1, 1, 2, 4),
            "drop_path_rate": 0.3,
            "norm_cfg": {"type": "LN", "requires_grad": True},
        },
        (67, 101),
    ),
}

#: Decode heads alone, and the shapes (C, h, w) of the features that they read.
HEADS: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "fcn_head": (
        head(type="FCNHead", num_convs=2, concat_input=True, channels=8, **_SINGLE),
        [(16, 7, 9)],
    ),
    "pspnet_head": (head(type="PSPHead", channels=4, **_SINGLE), [(16, 7, 9)]),
    "deeplabv3_head": (
        head(type="ASPPHead", channels=8, dilations=(1, 2, 3, 4), **_SINGLE),
        [(16, 7, 9)],
    ),
    "nonlocal_resnet": (head(type="NLHead", **_ATTENTION), [(16, 7, 9)]),
    "ccnet": (head(type="CCHead", **_ATTENTION), [(16, 7, 9)]),
    "danet": (head(type="DAHead", pam_channels=4, **_ATTENTION), [(16, 7, 9)]),
    "hrnet_fcn_head": (
        head(
            type="FCNHead",
            in_channels=_PYRAMID,
            in_index=(0, 1, 2, 3),
            channels=28,
            input_transform="resize_concat",
            kernel_size=1,
            num_convs=1,
            concat_input=False,
            dropout_ratio=-1,
        ),
        [(4, 17, 25), (6, 9, 13), (8, 5, 7), (10, 3, 4)],
    ),
    "upernet_head": (
        head(type="UPerHead", in_channels=_PYRAMID, in_index=[0, 1, 2, 3], channels=12),
        [(4, 17, 25), (6, 9, 13), (8, 5, 7), (10, 3, 4)],
    ),
    "jpu": (
        {
            "type": "JPU",
            "in_channels": (6, 8, 10),
            "mid_channels": 8,
            "start_level": 0,
            "end_level": -1,
            "dilations": (1, 2, 4, 8),
            "align_corners": False,
            "norm_cfg": NORM,
        },
        [(6, 9, 13), (8, 5, 7), (10, 3, 4)],
    ),
}

#: Heads in the network that they belong to, fed with random features instead of the backbone's, which would
#: hardly differ from pixel to pixel.
_FEATURES = [(4, 9, 13), (8, 5, 7), (16, 5, 7), (32, 5, 7)]
HEADS_IN_NETWORKS: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "ocr_resnet": (
        network(
            resnet(depth=18, base_channels=4),
            [_FCN_AUXILIARY, head(type="OCRHead", in_channels=32, in_index=3, channels=16, ocr_channels=8)],
        ),
        _FEATURES,
    ),
    "encnet": (
        network(
            resnet(depth=18, base_channels=4),
            head(
                type="EncHead",
                in_channels=[8, 16, 32],
                in_index=(1, 2, 3),
                channels=16,
                num_codes=6,
                loss_se_decode={**LOSS, "use_sigmoid": True, "loss_weight": 0.2},
            ),
            auxiliary_head=_FCN_AUXILIARY,
        ),
        _FEATURES,
    ),
}

HEADS_IN_NETWORKS |= {
    "deeplabv3plus": (
        network(
            resnet(depth=18, base_channels=4),
            head(
                type="DepthwiseSeparableASPPHead",
                in_channels=32,
                in_index=3,
                channels=8,
                dilations=(1, 2, 3, 4),
                c1_in_channels=4,
                c1_channels=3,
            ),
        ),
        [(4, 9, 13), (8, 5, 7), (16, 5, 7), (32, 5, 7)],
    ),
    "semantic_fpn": (
        network(
            resnet(depth=18, base_channels=4),
            head(
                type="FPNHead",
                in_channels=[6] * 4,
                in_index=[0, 1, 2, 3],
                feature_strides=[4, 8, 16, 32],
                channels=8,
            ),
            neck={"type": "FPN", "in_channels": [4, 8, 16, 32], "out_channels": 6, "num_outs": 4},
        ),
        [(4, 18, 25), (8, 9, 13), (16, 5, 7), (32, 3, 4)],
    ),
}

#: Whole networks, and the sizes of the images that they read.
NETWORKS: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "fcn_resnet50_thin": (
        network(
            resnet(depth=50, base_channels=2),
            head(type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=2, concat_input=True),
            auxiliary_head=head(
                type="FCNHead", in_channels=32, in_index=2, channels=4, num_convs=1, concat_input=False
            ),
        ),
        [(33, 49)],
    ),
    "segformer_b0_thin": (
        network(
            {
                "type": "MixVisionTransformer",
                "in_channels": 3,
                "embed_dims": 4,
                "num_stages": 4,
                "num_layers": [2, 1, 1, 1],
                "num_heads": [1, 2, 5, 8],
                "patch_sizes": [7, 3, 3, 3],
                "sr_ratios": [8, 4, 2, 1],
                "out_indices": (0, 1, 2, 3),
                "mlp_ratio": 4,
                "qkv_bias": True,
            },
            head(type="SegformerHead", in_channels=[4, 8, 20, 32], in_index=[0, 1, 2, 3], channels=16),
        ),
        [(61, 43), (37, 50)],
    ),
}
