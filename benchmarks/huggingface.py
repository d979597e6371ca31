"""Training steps of networks of transformers in this engine beside a plain loop, from one interleaved run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.steps import Case, make_batch
from regseg_d2.apps.costs.measuring import interleaved_medians
from regseg_d2.config import get_regseg_cfg
from regseg_d2.segmentor.build import build_model

NUM_CLASSES = 19
# A family that classifies pixels and one that classifies masks; SegFormer-B0, and Mask2Former on Swin-T.
NETWORKS: dict[str, dict[str, Any]] = {
    "segformer": {},
    "mask2former": {
        "backbone_config": {
            "model_type": "swin",
            "depths": [2, 2, 6, 2],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "num_queries": 50,
    },
}


def make_config(model_type: str, regularizers: list[str], device: str) -> CfgNode:
    """The config of a network with random weights."""
    cfg = get_regseg_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "HuggingFaceSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.HUGGINGFACE.MODEL_TYPE = model_type
    cfg.MODEL.HUGGINGFACE.CONFIG = CfgNode(NETWORKS[model_type])
    cfg.MODEL.REGULARIZERS.NAMES = regularizers
    return cfg


def plain_step(model: Any, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
    """A step as transformers' own examples write it: targets are made before, by a processor."""
    network: nn.Module = model.network
    labels = torch.stack([sample["sem_seg"] for sample in batch]).to(model.device)
    pixels = torch.stack([sample["image"] for sample in batch]).to(model.device)
    pixels = (pixels - model.pixel_mean) / model.pixel_std
    targets: dict[str, Any] = {"labels": labels}
    if model.classifies_masks:
        classes = [image[image < NUM_CLASSES].unique() for image in labels]
        masks = [torch.stack([(y == k).float() for k in ids]) for y, ids in zip(labels, classes, strict=True)]
        targets = {"mask_labels": masks, "class_labels": classes}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(pixels, **targets).loss.backward()
        optimizer.step()

    return step


def our_step(model: nn.Module, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
    """A step of the meta-architecture, from the mapper's output."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()
        optimizer.step()

    return step


def run(batch_size: int, size: int, rounds: int, device: str) -> None:
    """Measures the networks, and prints seconds and ratios to the plain loop.

    Args:
        batch_size: images a step.
        size: side of the square images.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.
    """
    batch = make_batch(Case(NUM_CLASSES, size, batch_size))
    for model_type in NETWORKS:
        models = {}
        for name, regularizers in (("plain", []), ("ours", []), ("ours, CAR", ["CAR"])):
            torch.manual_seed(0)
            models[name] = build_model(make_config(model_type, regularizers, device)).train()
        steps = {"plain loop": plain_step(models.pop("plain"), batch)}
        steps |= {name: our_step(model, batch) for name, model in models.items()}
        seconds = interleaved_medians(steps, rounds, device, f"{model_type}: training steps")
        rows = [[name, f"{s:.3f}", f"{s / seconds['plain loop']:.3f}"] for name, s in seconds.items()]
        print(f"{model_type}, {batch_size} x {size}^2 pixels, {NUM_CLASSES} classes")
        print(tabulate(rows, ["step", "s", "x plain loop"], disable_numparse=True))
