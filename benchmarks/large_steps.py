"""What each regularizer adds to the time and memory of a training step as papers have it, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from regseg_d2.apps.costs.measuring import announce, interleaved_medians, peak_memory
from regseg_d2.config.files import load_config
from regseg_d2.regularizers import REGULARIZER
from regseg_d2.segmentor.build import build_model

BLOCK = 64


def run(config_file: Path, batch_size: int, size: tuple[int, int], rounds: int, device: str) -> str:
    """Measures forward, backward and SGD under bf16, without and with each regularizer.

    Args:
        config_file: config of the network.
        batch_size: images a step.
        size: height and width of the images, multiples of 64.
        rounds: timed rounds.
        device: ``"cuda"`` or ``"cpu"``.

    Returns:
        A table of milliseconds and peak memory, and of both relative to the step without a regularizer.
    """
    announce(rounds, device)
    configs = {"none": _config(config_file, [], device)}
    configs |= {
        name: _config(config_file, [name], device) for name in sorted(name for name, _ in REGULARIZER)
    }
    memory = {
        name: peak_memory(_step_from_yaml, cfg.dump(), batch_size, size, device=device)
        for name, cfg in configs.items()
    }
    seconds = {}
    for name in list(configs)[1:]:
        # In pairs: all seven networks at once would not leave the memory that one of them has.
        pair = {each: make_step(configs[each], batch_size, size) for each in ("none", name)}
        seconds[name] = interleaved_medians(pair, rounds, device, name)
        del pair
        if device == "cuda":
            torch.cuda.empty_cache()
    rows = [
        [
            name,
            f"{1000 * seconds[name]['none']:.1f}",
            f"{1000 * seconds[name][name]:.1f}",
            f"{seconds[name][name] / seconds[name]['none']:.3f}",
            f"{memory[name]:.0f}",
            f"{memory[name] / memory['none']:.3f}",
        ]
        for name in seconds
    ]
    headers = ["regularizer", "without ms", "with ms", "ratio", "peak MB", "x without"]
    shape = f"{batch_size} x {size[0]} x {size[1]}"
    title = f"{config_file.stem}, {shape}, bf16, peak without {memory['none']:.0f} MB"
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def _config(config_file: Path, names: list[str], device: str) -> CfgNode:
    cfg = load_config(str(config_file), ["MODEL.DEVICE", device])
    cfg.MODEL.REGULARIZERS.NAMES = names
    return cfg


def _step_from_yaml(dumped: str, batch_size: int, size: tuple[int, int]) -> Callable[[], None]:
    return make_step(CfgNode.load_cfg(dumped), batch_size, size)


def make_step(cfg: CfgNode, batch_size: int, size: tuple[int, int]) -> Callable[[], None]:
    """A training step on random images with labels in blocks, a few of them void."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    batch = make_batch(cfg, batch_size, size)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(cfg.MODEL.DEVICE).type, torch.bfloat16):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def make_batch(cfg: CfgNode, batch_size: int, size: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """Random images with labels in blocks, a few of them void."""
    generator = torch.Generator().manual_seed(0)
    classes, blocks = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (size[0] // BLOCK, size[1] // BLOCK)
    batch = []
    for _ in range(batch_size):
        labels = torch.randint(0, classes, blocks, generator=generator)
        labels = labels.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        labels[: BLOCK // 4] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        image = torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8)
        batch.append({"image": image, "sem_seg": labels})
    return batch
