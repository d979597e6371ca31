"""Runs whole networks of mmsegmentation 1.2.2, in an environment that has it.

``python mmseg_reference.py NAME CHECKPOINT LOGITS [--size H W]`` builds a network from mmsegmentation's own
config with random weights, and writes its checkpoint in the form of a training run and what it makes of a
random image. ``--count`` prints the numbers of parameters of all networks instead.

The environment needs mmsegmentation 1.2.2, mmengine and mmcv or mmcv-lite; mmcv's compiled operations are not
used.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

# That environment lacks this package, of which this one module is enough.
sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.mmsegmentation import PAIRS, import_mmsegmentation, network_config  # noqa: E402


def build(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """Builds a network, head or neck in evaluation mode, with random weights and norms that matter."""
    from mmseg.registry import MODELS

    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(config))
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if getattr(module, "running_mean", None) is not None or isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    model.eval()  # some of mmsegmentation's backbones return nothing here
    return model


def spread_weights(model: torch.nn.Module) -> None:
    """Draws what is initialised to next to nothing anew, so that each part shows in the logits."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma.scale"):
            torch.nn.init.constant_(parameter, 0.7)
        elif "conv_seg.weight" in name or "conv_out.conv.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)


@torch.no_grad()
def logits_of(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Logits at feature size."""
    features = model.extract_feat(image)
    if isinstance(model.decode_head, torch.nn.ModuleList):
        logits = model.decode_head[0].forward(features)
        for head in model.decode_head[1:]:
            logits = head.forward(features, logits)
    else:
        logits = model.decode_head.forward(features)
    return logits[0] if isinstance(logits, (list, tuple)) else logits


@torch.no_grad()
def set_scale(model: torch.nn.Module, image: torch.Tensor, deviation: float = 3.0) -> None:
    """Scales the last classifier so that logits are of the size that trained networks have."""
    head = model.decode_head
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    scale = deviation / logits_of(model, image).std()
    head.conv_seg.weight *= scale
    head.conv_seg.bias *= scale


def training_checkpoint(model: torch.nn.Module) -> dict[str, Any]:
    """A checkpoint as a training run of mmengine leaves it, with the values around the weights."""
    from mmengine.logging import HistoryBuffer

    return {
        "meta": {
            "epoch": 1,
            "iter": 2,
            "dataset_meta": {"classes": ("road", "car"), "palette": [[128, 64, 128], [0, 0, 142]]},
            "seed": np.int64(7),
            "cfg": "model = dict()",
        },
        "state_dict": model.state_dict(),
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([0.5, 0.25], [1, 1])},
            "runtime_info": {},
        },
    }


def count_parameters(name: str) -> dict[str, int]:
    """Parameters of backbone and decode heads, and of the auxiliary head."""
    model = build(network_config(name))
    auxiliary = 0
    if getattr(model, "auxiliary_head", None) is not None:
        auxiliary = sum(p.numel() for p in model.auxiliary_head.parameters())
    return {"network": sum(p.numel() for p in model.parameters()) - auxiliary, "auxiliary": auxiliary}


def main() -> None:
    """Writes a checkpoint and its logits, or prints numbers of parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=list(PAIRS))
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("logits", nargs="?")
    parser.add_argument("--size", type=int, nargs=2, default=(97, 129))
    parser.add_argument("--count", action="store_true")
    args = parser.parse_args()
    import_mmsegmentation()
    torch.set_num_threads(1)
    if args.count:
        print(json.dumps({name: count_parameters(name) for name in PAIRS}, indent=2))
        return
    if not args.logits:
        parser.error("NAME CHECKPOINT LOGITS are needed")
    model = build(network_config(args.name))
    spread_weights(model)
    image = torch.randn(1, 3, *args.size, generator=torch.Generator().manual_seed(1))
    set_scale(model, image)
    torch.save(training_checkpoint(model), args.checkpoint)
    torch.save({"image": image, "logits": logits_of(model, image)}, args.logits)


if __name__ == "__main__":
    main()
