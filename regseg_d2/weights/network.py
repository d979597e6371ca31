"""What a published checkpoint is to fit: a config, and the tensors of the model that it builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from detectron2.config import CfgNode
from torch import Size

BACKBONE = "backbone."
HEAD = "sem_seg_head."
BATCH_COUNTER = ".num_batches_tracked"
#: How the names of all tensors of a network of transformers begin.
HUGGINGFACE = "network."
#: Ends of the names of what a checkpoint of another package need not have: what a network computes by itself,
#: the weights of the classes in transformers' losses, and the norm behind the last stage of its Swins, which
#: nothing reads where each stage has a norm of its own.
NOT_NEEDED = (
    BATCH_COUNTER,
    ".relative_position_index",
    ".attn_mask",
    ".criterion.empty_weight",
    *(f".encoder.{swin}.layernorm.{kind}" for swin in ("swin", "model") for kind in ("weight", "bias")),
)
#: Values of MODEL.BACKBONE.NAME that build ResNets with Detectron2's names.
RESNET_BUILDERS = (
    "build_dilated_resnet_backbone",
    "build_resnet_backbone",
    "build_resnet_deeplab_backbone",
    "build_resnet_fpn_backbone",
)


@dataclass(frozen=True)
class Network:
    """A network as the rules see it.

    Attributes:
        cfg: its full config.
        shapes: the shape of each of the model's tensors.
        model_type: what transformers calls the family of a network of its own; "" is any other network.
        model_backbone: how the names of the backbone's tensors begin in a network of transformers.
    """

    cfg: CfgNode
    shapes: Mapping[str, Size]
    model_type: str = ""
    model_backbone: str = HUGGINGFACE

    @classmethod
    def of(cls, cfg: CfgNode, model: Any) -> Network:
        """Describes the model that was built from a config."""
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if cfg.MODEL.META_ARCHITECTURE == "HuggingFaceSegmentor":
            return cls(cfg, shapes, model.network.config.model_type, model.backbone_prefix)
        return cls(cfg, shapes)

    @property
    def backbone_kind(self) -> str:
        """``dilated_resnet`` for ``build_dilated_resnet_backbone``; of timm's, ``timm_`` and the family.

        All backbones of transformers are ``huggingface``.
        """
        if self.model_type:
            return "huggingface"
        if self.cfg.MODEL.BACKBONE.NAME in RESNET_BUILDERS:
            return "dilated_resnet"
        kind = self.cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
        if kind == "timm" and timm.is_model(self.cfg.MODEL.TIMM.NAME):
            return f"timm_{timm.model_entrypoint(self.cfg.MODEL.TIMM.NAME).__module__.rpartition('.')[2]}"
        return kind

    @property
    def backbone_prefix(self) -> str:
        """How the names of the backbone's tensors begin; below an FPN the backbone is a part of it."""
        if self.model_type:
            return self.model_backbone
        bottom_up = f"{BACKBONE}bottom_up."
        return bottom_up if any(name.startswith(bottom_up) for name in self.shapes) else BACKBONE

    @property
    def backbone_tensors(self) -> list[str]:
        """Names of what of the backbone a checkpoint has to hold."""
        prefix = self.backbone_prefix
        return [n for n in self.shapes if n.startswith(prefix) and not n.endswith(NOT_NEEDED)]

    def is_of_head(self, name: str) -> bool:
        """Whether a name is one of the head's; of a network of transformers that is all but the backbone."""
        if self.model_type:
            return name.startswith(HUGGINGFACE) and not name.startswith(self.model_backbone)
        return name.startswith(HEAD)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of the config that say which backbone and which head it is."""
        if self.model_type:
            return ("MODEL.HUGGINGFACE and its CONFIG",) * 2
        return "MODEL.BACKBONE.NAME and its keys", "MODEL.SEM_SEG_HEAD and its keys"

    @property
    def stages(self) -> list[str]:
        """Names of the head's fusion and context; none where the head is not built from stages."""
        head = self.cfg.MODEL.SEM_SEG_HEAD
        return [name for name in (head.FUSION, head.CONTEXT) if name] if head.NAME == "ContextHead" else []
