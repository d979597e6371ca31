"""What ``SOLVER.COMPILE`` gains in a training step, and what the first step costs for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from benchmarks.large_steps import make_batch
from regseg_d2.apps.costs.measuring import announce, interleaved_medians
from regseg_d2.config.files import load_config
from regseg_d2.engine.compilation import compile_parts
from regseg_d2.segmentor.build import build_model


def run(
    config_file: Path, batch_size: int, size: tuple[int, int], rounds: int, device: str, backend: str
) -> str:
    """Measures forward, backward and SGD, eager and compiled, without a regularizer and with CAR.

    Args:
        config_file: config of the network.
        batch_size: images a step.
        size: height and width of the images, multiples of 64.
        rounds: timed rounds.
        device: ``"cuda"`` or ``"cpu"``.
        backend: ``SOLVER.COMPILE.BACKEND``.

    Returns:
        A table of milliseconds, their ratio, and seconds until the first compiled step is made.
    """
    announce(rounds, device)
    rows = []
    for names in ([], ["CAR"]):
        cfg = load_config(str(config_file), ["MODEL.DEVICE", device, "SOLVER.COMPILE.BACKEND", backend])
        cfg.MODEL.REGULARIZERS.NAMES = names
        steps = {way: make_step(cfg, way == "compiled", batch_size, size) for way in ("eager", "compiled")}
        started = time.perf_counter()
        steps["compiled"]()
        first = time.perf_counter() - started
        seconds = interleaved_medians(steps, rounds, device, ", ".join(names) or "none")
        ratio = seconds["compiled"] / seconds["eager"]
        times = [f"{1000 * seconds[way]:.1f}" for way in ("eager", "compiled")]
        rows.append([", ".join(names) or "none", *times, f"{ratio:.3f}", f"{first:.0f}"])
    headers = ["regularizer", "eager ms", "compiled ms", "compiled / eager", "first step s"]
    title = f"{config_file.stem}, {batch_size} x {size[0]} x {size[1]}, {backend}"
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def make_step(cfg: CfgNode, compiled: bool, batch_size: int, size: tuple[int, int]) -> Callable[[], None]:
    """A training step in float32 on random images."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if compiled:
        compile_parts(cfg, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    batch = make_batch(cfg, batch_size, size)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()
        optimizer.step()

    return step
