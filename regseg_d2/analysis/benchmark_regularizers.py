"""What regularizers cost in training: time and peak memory, as ratios measured in one run."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn

import regseg_d2.modeling  # noqa: F401  registers networks
from regseg_d2.config import get_regseg_cfg
from regseg_d2.regularizers import REGULARIZER, Regularizer, RegularizerInput


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
    """Configs by name: the baseline, CAR's head without losses, and that head with each regularizer."""
    result = {
        "baseline": make_config(case, [], "ConvBlock", device),
        "CAR's head, no losses": make_config(case, [], "LinearConvBlock", device),
    }
    for name in sorted(name for name, _ in REGULARIZER):
        result[f"CAR's head, {name}"] = make_config(case, [name], "LinearConvBlock", device)
        result[f"baseline's head, {name}"] = make_config(case, [name], "ConvBlock", device)
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


def interleaved_medians(
    actions: dict[str, Callable[[], None]], rounds: int, device: str, title: str
) -> dict[str, float]:
    """Seconds of each action: the median over rounds in which all take their turn, after a warm-up.

    Args:
        actions: what to time, by name.
        rounds: timed rounds; one more is run before them.
        device: ``"cuda"`` waits for the GPU before each reading of the clock.
        title: shown with the progress.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for index in track(range(rounds + 1), title, transient=True):
        for name, action in actions.items():
            _wait(device)
            start = time.perf_counter()
            action()
            _wait(device)
            if index:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step_peak_memory(cfg: CfgNode, case: Case, device: str) -> float:
    """MB that a training step takes at most beyond the memory before it, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sender, cfg.dump(), case, device))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"measuring memory failed: the process ended with {process.exitcode}") from error
    finally:
        process.join()


def _measure_memory(sender, dumped: str, case: Case, device: str) -> None:
    torch.set_num_threads(1)
    cfg = CfgNode.load_cfg(dumped)
    step = make_step(cfg, make_batch(case))
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        sender.send((torch.cuda.max_memory_allocated() - before) / 1e6)
    else:
        before = _resident_bytes()
        step()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)
    sender.close()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
    memory = {name: step_peak_memory(cfg, case, device) for name, cfg in configs.items()}
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


def benchmark_losses(num_classes: int, size: tuple[int, int], rounds: int, device: str) -> str:
    """Measures each regularizer's losses alone, beside upsampling and cross entropy.

    Args:
        num_classes: number of classes K.
        size: height and width of the features.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A table with seconds, forward and backward, and ratios to upsampling and cross entropy.
    """
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 256, *size, generator=generator).to(device).requires_grad_(True)
    logits = torch.randn(2, num_classes, *size, generator=generator).to(device).requires_grad_(True)
    blocks = torch.randint(0, 12, (2, size[0] // 8, size[1] // 8), generator=generator)
    targets = blocks.repeat_interleave(64, 1).repeat_interleave(64, 2).to(device)

    def cross_entropy() -> None:
        full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
        F.cross_entropy(full, targets, ignore_index=255).backward()

    actions = {"upsample + cross entropy": cross_entropy}
    network = nn.ModuleDict({"sem_seg_head": nn.ModuleDict({"predictor": nn.Conv2d(256, num_classes, 1)})})
    cfg = get_regseg_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    for name in sorted(name for name, _ in REGULARIZER):
        regularizer = REGULARIZER.get(name)(cfg, network).to(device)
        actions[name] = _loss_action(regularizer, feature, targets)
    seconds = interleaved_medians(actions, rounds, device, "losses")
    reference = seconds["upsample + cross entropy"]
    rows = [[name, f"{1e3 * value:.1f}", f"{value / reference:.3f}"] for name, value in seconds.items()]
    title = f"losses alone, forward + backward: embeddings 2x256x{size[0]}x{size[1]}, {num_classes} classes"
    headers = ["loss", "ms", "x upsample + CE"]
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def _loss_action(regularizer: Regularizer, feature: Tensor, targets: Tensor) -> Callable[[], None]:
    def action() -> None:
        # A new input each time: labels at feature size are part of the cost.
        inputs = RegularizerInput({regularizer.feature_tap: feature}, targets, 255)
        sum(regularizer(inputs).values()).backward()

    return action


def run(rounds: int, device: str, only_losses: bool = False) -> None:
    """Prints all tables.

    Args:
        rounds: timed rounds of the smaller case; the larger takes a third of them, at least 3.
        device: ``"cpu"`` (on one thread) or ``"cuda"``.
        only_losses: leave the training steps out.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    print(f"torch {torch.__version__}, {where}; medians of {rounds} interleaved rounds", file=sys.stdout)
    for num_classes, size in ((19, (64, 128)), (150, (64, 64))):
        print("\n" + benchmark_losses(num_classes, size, rounds, device), flush=True)
    if not only_losses:
        for case in CASES:
            case_rounds = rounds if case.size == 256 else max(3, rounds // 3)
            print("\n" + benchmark_steps(case, case_rounds, device), flush=True)
