"""What regularizers cost in a training step, as ratios measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from regseg_d2.apps.costs.measuring import interleaved_medians, peak_memory
from regseg_d2.config import get_regseg_cfg
from regseg_d2.regularizers import REGULARIZER
from regseg_d2.segmentor.build import build_model


@dataclass(frozen=True)
class Case:
    """A training step to measure.

    Attributes:
        num_classes: number of classes K.
        size: side of the square crop in pixels; features are an eighth of it.
        batch_size: images a step.
    """

    num_classes: int
    size: int
    batch_size: int = 2

    def __str__(self) -> str:
        side = self.size // 8
        return f"{self.batch_size} x {self.size}^2 pixels, {side}x{side} features, {self.num_classes} classes"


CASES = (Case(num_classes=19, size=256), Case(num_classes=150, size=512))


def make_config(case: Case, regularizers: Sequence[str], projection: str, device: str) -> CfgNode:
    """DeepLabV3 on ResNet-50 of stride 8.

    Args:
        case: what to measure.
        regularizers: names of the regularizers.
        projection: ``"ConvBlock"`` (3x3) or ``"LinearConvBlock"`` (CAR's linear and 1x1 convolution).
        device: ``"cpu"`` or ``"cuda"``.
    """
    cfg = get_regseg_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.NORM = "BN"
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 8
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES = case.num_classes
    head.ASPP_DILATIONS = [12, 24, 36]
    head.CONTEXT_CHANNELS = head.CONVS_DIM = 512
    head.PROJECTION = projection
    head.PROJECTION_KERNEL_SIZE = 1 if projection == "LinearConvBlock" else 3
    cfg.MODEL.REGULARIZERS.NAMES = list(regularizers)
    return cfg


def variants(case: Case, device: str) -> dict[str, CfgNode]:
    """Configs by name: the baseline, with each regularizer, and CAR's head without and with CAR."""
    result = {"baseline": make_config(case, [], "ConvBlock", device)}
    for name in sorted(name for name, _ in REGULARIZER):
        result[f"baseline's head, {name}"] = make_config(case, [name], "ConvBlock", device)
    result["CAR's head, no losses"] = make_config(case, [], "LinearConvBlock", device)
    result["CAR's head, CAR"] = make_config(case, ["CAR"], "LinearConvBlock", device)
    return result


def make_batch(case: Case) -> list[dict[str, Tensor]]:
    """Random images with labels in blocks of 64 pixels, about 12 classes an image, a few void."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(case.batch_size):
        present = torch.randperm(case.num_classes, generator=generator)[:12]
        blocks = present[torch.randint(0, len(present), (case.size // 64,) * 2, generator=generator)]
        labels = blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)
        labels[: case.size // 16] = 255
        image = torch.randint(0, 256, (3, case.size, case.size), generator=generator).to(torch.uint8)
        batch.append({"image": image, "sem_seg": labels})
    return batch


def make_step(cfg: CfgNode, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
    """A training step: forward, backward and SGD."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()
        optimizer.step()

    return step


def _step_from_yaml(dumped: str, case: Case) -> Callable[[], None]:
    return make_step(CfgNode.load_cfg(dumped), make_batch(case))


def benchmark_steps(case: Case, rounds: int, device: str) -> str:
    """Measures a training step of every variant.

    Args:
        case: what to measure.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A table with seconds, peak memory, and both as ratios to the baseline and to the same head
        without the losses.
    """
    configs = variants(case, device)
    memory = {
        name: peak_memory(_step_from_yaml, cfg.dump(), case, device=device) for name, cfg in configs.items()
    }
    batch = make_batch(case)
    steps = {name: make_step(cfg, batch) for name, cfg in configs.items()}
    seconds = interleaved_medians(steps, rounds, device, "training steps")
    rows = []
    for name in configs:
        head = "baseline" if name.startswith("baseline") else "CAR's head, no losses"
        rows.append(
            [
                name,
                f"{seconds[name]:.3f}",
                f"{seconds[name] / seconds['baseline']:.3f}",
                f"{seconds[name] / seconds[head]:.3f}",
                f"{memory[name]:.0f}",
                f"{memory[name] / memory[head]:.3f}",
            ]
        )
    headers = ["step", "s", "x baseline", "x same head", "peak MB", "x same head"]
    return f"DeepLabV3-R50 stride 8, {case}\n{tabulate(rows, headers, disable_numparse=True)}"
