"""What an evaluation says about the model that it measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from regseg_d2.config.keys import flatten_config
from regseg_d2.engine.checkpoint import TRAINING_ONLY_PREFIX

# Keys of MODEL that say where it comes from or runs, not what it computes.
_NOT_THE_MODEL = (
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.TRUST_PICKLE",
    "MODEL.REGULARIZERS.",
    "MODEL.TIMM.PRETRAINED",
)
_INPUT_KEYS = ("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")


def describe_model(cfg: CfgNode, model: nn.Module, completed_steps: int | None) -> dict[str, Any]:
    """Returns hashes that are equal for equal models; nothing of it depends on time or place."""
    return {
        "completed_steps": completed_steps,
        "config_sha256": _config_hash(cfg),
        "weights_sha256": weights_hash(model.state_dict()),
    }


def weights_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Returns a SHA-256 of the weights that take part in inference, names and shapes included."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if name.startswith(TRAINING_ONLY_PREFIX):
            continue
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _config_hash(cfg: CfgNode) -> str:
    values = {
        key: value
        for key, value in flatten_config(cfg).items()
        if key in _INPUT_KEYS or (key.startswith("MODEL.") and not key.startswith(_NOT_THE_MODEL))
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
