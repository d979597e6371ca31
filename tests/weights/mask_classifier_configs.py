"""Thin networks of mmsegmentation that classify masks, for ``make_fixtures.py``."""

from __future__ import annotations

from typing import Any

WIDTH, CLASSES, QUERIES = 32, 5, 6
GROUP_NORM = {"type": "GN", "num_groups": 32}
_RELU = {"type": "ReLU", "inplace": True}
_POSITIONS = {"num_feats": WIDTH // 2, "normalize": True}
_LOSS = {
    "type": "mmdet.CrossEntropyLoss",
    "use_sigmoid": False,
    "loss_weight": 1.0,
    "class_weight": [1.0] * CLASSES + [0.1],
}
_MASK_LOSS = {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
_DICE_LOSS = {"type": "mmdet.DiceLoss", "use_sigmoid": True, "activate": True, "loss_weight": 1.0}


def _attention() -> dict[str, Any]:
    return {"embed_dims": WIDTH, "num_heads": 4, "batch_first": True}


def _feed_forward() -> dict[str, Any]:
    return {
        "embed_dims": WIDTH,
        "feedforward_channels": 16,
        "num_fcs": 2,
        "ffn_drop": 0.0,
        "act_cfg": _RELU,
    }


def _queries(layers: int) -> dict[str, Any]:
    layer = {"self_attn_cfg": _attention(), "cross_attn_cfg": _attention(), "ffn_cfg": _feed_forward()}
    return {"return_intermediate": True, "num_layers": layers, "layer_cfg": layer, "init_cfg": None}


def _head(kind: str, in_channels: list[int], layers: int, **options: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "in_channels": in_channels,
        "feat_channels": WIDTH,
        "out_channels": WIDTH,
        "num_classes": CLASSES,
        "num_queries": QUERIES,
        "positional_encoding": _POSITIONS,
        "transformer_decoder": _queries(layers),
        "loss_cls": _LOSS,
        "loss_mask": _MASK_LOSS,
        "loss_dice": _DICE_LOSS,
        **options,
    }


def _network(backbone: dict[str, Any], decode_head: dict[str, Any]) -> dict[str, Any]:
    common = {"data_preprocessor": None, "pretrained": None, "train_cfg": {}, "test_cfg": {"mode": "whole"}}
    return {"type": "EncoderDecoder", "backbone": backbone, "decode_head": decode_head, **common}


_SWIN = {
    "type": "SwinTransformer",
    "embed_dims": 4,
    "window_size": 4,
    "mlp_ratio": 4,
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 1, 2, 4),
    "drop_path_rate": 0.3,
}
_RESNET = {
    "type": "ResNet",
    "depth": 50,
    "stem_channels": 8,
    "base_channels": 2,
    "norm_cfg": {"type": "BN", "requires_grad": True},
    "style": "pytorch",
}
_DEFORMABLE = {
    "type": "mmdet.MSDeformAttnPixelDecoder",
    "num_outs": 3,
    "norm_cfg": GROUP_NORM,
    "act_cfg": {"type": "ReLU"},
    "encoder": {
        "num_layers": 2,
        "layer_cfg": {
            "self_attn_cfg": {**_attention(), "num_levels": 3, "num_points": 4, "dropout": 0.0},
            "ffn_cfg": _feed_forward(),
        },
    },
    "positional_encoding": _POSITIONS,
}
_PYRAMID = {"type": "mmdet.PixelDecoder", "norm_cfg": GROUP_NORM, "act_cfg": {"type": "ReLU"}}

#: Networks, and the sizes of the images that they read.
MASK_CLASSIFIERS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    # Each of the three levels is looked at by a layer of its own.
    "mask2former_swin": (
        _network(
            _SWIN,
            _head(
                "Mask2FormerHead",
                [4, 8, 16, 32],
                3,
                strides=[4, 8, 16, 32],
                num_transformer_feat_level=3,
                pixel_decoder=_DEFORMABLE,
            ),
        ),
        (51, 77),
    ),
    "maskformer_resnet": (
        _network(_RESNET, _head("MaskFormerHead", [8, 16, 32, 64], 2, pixel_decoder=_PYRAMID)),
        (35, 53),
    ),
}
