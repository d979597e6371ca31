"""What a published checkpoint is to fit: a config, and the tensors of the model that it builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import timm
from detectron2.config import CfgNode
from torch import Size, nn

BACKBONE = "backbone."
HEAD = "sem_seg_head."
BATCH_COUNTER = ".num_batches_tracked"
#: Values of MODEL.BACKBONE.NAME that build ResNets with Detectron2's names.
RESNET_BUILDERS = (
    "build_dilated_resnet_backbone",
    "build_resnet_backbone",
    "build_resnet_deeplab_backbone",
    "build_resnet_fpn_backbone",
)


@dataclass(frozen=True)
class Network:
    """A network as the rules see it: a full config, and the shape of each of the model's tensors."""

    cfg: CfgNode
    shapes: Mapping[str, Size]

    @classmethod
    def of(cls, cfg: CfgNode, model: nn.Module) -> Network:
        """Describes the model that was built from a config."""
        return cls(cfg, {name: value.shape for name, value in model.state_dict().items()})

    @property
    def backbone_kind(self) -> str:
        """``dilated_resnet`` for ``build_dilated_resnet_backbone``; of timm's, ``timm_`` and the family."""
        if self.cfg.MODEL.BACKBONE.NAME in RESNET_BUILDERS:
            return "dilated_resnet"
        kind = self.cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
        if kind == "timm" and timm.is_model(self.cfg.MODEL.TIMM.NAME):
            return f"timm_{timm.model_entrypoint(self.cfg.MODEL.TIMM.NAME).__module__.rpartition('.')[2]}"
        return kind

    @property
    def backbone_prefix(self) -> str:
        """How the names of the backbone's tensors begin; below an FPN the backbone is a part of it."""
        bottom_up = f"{BACKBONE}bottom_up."
        return bottom_up if any(name.startswith(bottom_up) for name in self.shapes) else BACKBONE

    @property
    def backbone_tensors(self) -> list[str]:
        """Names of what of the backbone a checkpoint can hold, without counters of batches."""
        prefix = self.backbone_prefix
        return [n for n in self.shapes if n.startswith(prefix) and not n.endswith(BATCH_COUNTER)]

    @property
    def stages(self) -> list[str]:
        """Names of the head's fusion and context; none where the head is not built from stages."""
        head = self.cfg.MODEL.SEM_SEG_HEAD
        return [name for name in (head.FUSION, head.CONTEXT) if name] if head.NAME == "ContextHead" else []
