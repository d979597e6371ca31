"""Segmentation networks of Hugging Face's transformers."""

from regseg_d2.modeling.huggingface.families import Family, family_of
from regseg_d2.modeling.huggingface.networks import build_network, load_config, pretrained_weights
from regseg_d2.modeling.huggingface.targets import mask_targets, occurring_classes

__all__ = [
    "Family",
    "build_network",
    "family_of",
    "load_config",
    "mask_targets",
    "occurring_classes",
    "pretrained_weights",
]
