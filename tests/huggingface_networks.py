"""Tiny networks of transformers, one a family."""

from regseg_d2.config import get_regseg_cfg
from tests.helpers import IGNORE, NUM_CLASSES

SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
_DETR = {
    "model_type": "detr",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
    "dropout": 0.0,
}
_MASKED_ATTENTION = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "num_attention_heads": 4,
    "dim_feedforward": 32,
    "num_queries": 6,
    "train_num_points": 64,
}

# What of each family's config is small.
TINY = {
    "segformer": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "upernet": {
        "backbone_config": SWIN,
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "auxiliary_in_channels": 32,
    },
    "beit": {**_VIT, "intermediate_size": 32, "out_indices": [1, 2, 3, 4]},
    "dpt": {
        **_VIT,
        "intermediate_size": 32,
        "is_hybrid": False,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
    },
    "maskformer": {
        "backbone_config": SWIN,
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
        "decoder_config": _DETR,
    },
    "mask2former": {
        **_MASKED_ATTENTION,
        "backbone_config": SWIN,
        "feature_size": 32,
        "mask_feature_size": 32,
        "decoder_layers": 2,
    },
    "oneformer": {
        **_MASKED_ATTENTION,
        "backbone_config": SWIN,
        "conv_dim": 32,
        "mask_dim": 32,
        "decoder_layers": 3,
        "query_dec_layers": 1,
    },
    "eomt": {**_VIT, "num_hidden_layers": 3, "num_blocks": 2, "num_queries": 6, "train_num_points": 64},
}
CLASSIFY_MASKS = ("maskformer", "mask2former", "oneformer", "eomt")


def huggingface_cfg(model_type, regularizers=(), **changes):
    """The config of a tiny network; ``changes`` are values of the network's config."""
    cfg = get_regseg_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "HuggingFaceSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = IGNORE
    cfg.INPUT.CROP.SIZE = [64, 64]
    cfg.MODEL.REGULARIZERS.NAMES = list(regularizers)
    cfg.MODEL.HUGGINGFACE.MODEL_TYPE = model_type
    cfg.MODEL.HUGGINGFACE.CONFIG.update(as_node({**TINY.get(model_type, {}), **changes}))
    return cfg


def as_node(value):
    """A dict and all in it as config nodes."""
    from detectron2.config import CfgNode

    return CfgNode({key: as_node(v) for key, v in value.items()}) if isinstance(value, dict) else value
