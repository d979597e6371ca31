"""What is known of transformers' segmentation networks, family by family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from regseg_d2.common.errors import UserError

#: Tokens of "the task is semantic" in CLIP's vocabulary, start and end included: what OneFormer is told.
SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
_MASK_PROJECTION = "model.pixel_level_module.decoder.mask_projection:in"
_PIXEL_LEVEL_ENCODER = "model.pixel_level_module.encoder"


@dataclass(frozen=True)
class Family:
    """How the networks of a ``model_type`` are laid out. Paths start at the network.

    Attributes:
        classifier: path of what turns features into logits; ``""`` is unknown. Of networks that classify
            masks it is the network itself.
        features: tap of what that reads, or of what the masks are made of; ``""`` where the classifier tells.
        backbone: path of the backbone; ``""`` where there is none of its own.
        shape: the input sizes that it takes: ``"any"``, ``"square"``, or ``"fixed"`` to its config's.
        stretches_masks: masks are stretched over the input before classes and masks are multiplied, as
            transformers' post-processing does with these networks; else their product is stretched.
    """

    classifier: str = ""
    features: str = ""
    backbone: str = ""
    shape: str = "any"
    stretches_masks: bool = False


_FAMILIES: dict[str, Family] = {
    "beit": Family("decode_head.classifier", backbone="beit"),
    "data2vec-vision": Family("decode_head.classifier", backbone="data2vec_vision"),
    "dpt": Family("head.head.4", backbone="dpt", shape="square"),
    "eomt": Family(shape="fixed", stretches_masks=True),
    "eomt_dinov3": Family(shape="any", stretches_masks=True),
    "mask2former": Family("", _MASK_PROJECTION, _PIXEL_LEVEL_ENCODER, stretches_masks=True),
    "maskformer": Family("", _MASK_PROJECTION, _PIXEL_LEVEL_ENCODER),
    "oneformer": Family("", _MASK_PROJECTION, _PIXEL_LEVEL_ENCODER),
    "segformer": Family("decode_head.classifier", "decode_head.dropout:in", "segformer"),
    "upernet": Family("decode_head.classifier", backbone="backbone"),
}


def family_of(config: Any) -> Family:
    """What is known of the networks of a config of transformers; of an unknown one an empty Family."""
    family = _FAMILIES.get(config.model_type, Family())
    if config.model_type.startswith("eomt") and config.num_upscale_blocks:
        # It is called once for each layer that classifies masks; the last one is the result.
        last = config.num_upscale_blocks - 1
        return replace(family, features=f"upscale_block.block.{last}.layernorm2d:out#-1")
    if config.model_type == "dpt" and config.is_hybrid:
        return replace(family, shape="fixed")
    return family


def size_divisibility(config: Any) -> int:
    """What sides of the input have to be multiples of, or are taken to be where the config does not tell."""
    patch = getattr(config, "patch_size", None)
    return patch if isinstance(patch, int) and patch >= 8 else 32


def padded_size(config: Any, divisor: int, height: int, width: int) -> tuple[int, int]:
    """The size of the input that images up to a size are padded to.

    Args:
        config: a config of transformers.
        divisor: sides are multiples of it.
        height: of the highest image.
        width: of the widest.

    Raises:
        UserError: the network takes images of one size, and these are larger.
    """
    shape = family_of(config).shape
    if shape == "fixed":
        size = config.image_size
        fixed_height, fixed_width = (size, size) if isinstance(size, int) else size
        if height > fixed_height or width > fixed_width:
            raise UserError(
                f"{config.model_type} takes images of {fixed_height} x {fixed_width} pixels (image_size of "
                f"its config), and got {height} x {width}: set INPUT.CROP.SIZE to it, and for larger test "
                "images TEST.MODE slide with TEST.SLIDE.CROP_SIZE of that size."
            )
        return fixed_height, fixed_width
    if shape == "square":
        height = width = max(height, width)
    return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor


def task_arguments(config: Any, like: Tensor) -> dict[str, Tensor]:
    """Further arguments of a network's forward: OneFormer is told that the task is semantic segmentation.

    Args:
        config: a config of transformers.
        like: the images ``(N, 3, H, W)``.
    """
    if config.model_type != "oneformer":
        return {}
    tokens = F.pad(like.new_tensor(SEMANTIC_TASK), (0, config.task_seq_len - len(SEMANTIC_TASK)))
    return {"task_inputs": tokens.expand(len(like), -1)}
