"""What the pixel loss costs, beside plain upsampling and cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from regseg_d2.apps.costs.measuring import announce, interleaved_medians, peak_memory
from regseg_d2.modeling.losses import SegmentationLoss

VOID = 255
OHEM_THRESHOLD, OHEM_MIN_KEPT = 0.7, 100_000
_BLOCK = 32

#: Keys of ``SegmentationLoss`` of each kind of loss; weights are added when the number of classes is known.
KINDS: dict[str, dict[str, Any]] = {
    "cross entropy": {},
    "weighted": {},
    "OHEM": {"loss_type": "ohem", "ohem_threshold": OHEM_THRESHOLD, "ohem_min_kept": OHEM_MIN_KEPT},
}


@dataclass(frozen=True)
class PixelLossCase:
    """Logits ``N x K x h x w``, and labels eight times as high and wide.

    Attributes:
        shape: of the logits.
    """

    shape: tuple[int, int, int, int]


CASES = (PixelLossCase((4, 150, 64, 64)), PixelLossCase((2, 19, 64, 128)))


def make_tensors(case: PixelLossCase, device: str) -> tuple[Tensor, Tensor]:
    """Draws logits that favour the true class, and labels in blocks, a tenth void; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    batch, classes, height, width = case.shape
    blocks = torch.randint(
        0, classes, (batch, 8 * height // _BLOCK, 8 * width // _BLOCK), generator=generator
    )
    blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = VOID
    targets = blocks.repeat_interleave(_BLOCK, 1).repeat_interleave(_BLOCK, 2)
    logits = torch.randn(case.shape, generator=generator)
    true_class = targets[:, ::8, ::8].unsqueeze(1)
    favoured = torch.full(true_class.shape, 4.0).masked_fill(true_class == VOID, 0.0)
    logits.scatter_add_(1, true_class.masked_fill(true_class == VOID, 0), favoured)
    return logits.to(device).requires_grad_(True), targets.to(device)


def make_action(kind: str, is_plain: bool, case: PixelLossCase, device: str) -> Callable[[], None]:
    """Forward and backward of one loss.

    Args:
        kind: a key of :data:`KINDS`.
        is_plain: upsample, then take the loss of the upsampled logits.
        case: what to measure on.
        device: ``"cpu"`` or ``"cuda"``.
    """
    logits, targets = make_tensors(case, device)
    loss = plain_loss(kind, case, device) if is_plain else package_loss(kind, case, device)

    def action() -> None:
        logits.grad = None
        loss(logits, targets).backward()

    return action


def package_loss(kind: str, case: PixelLossCase, device: str) -> SegmentationLoss:
    """The loss that the heads of this package use."""
    classes = case.shape[1]
    weights = _class_weights(classes).tolist() if kind == "weighted" else ()
    return SegmentationLoss(num_classes=classes, ignore_value=VOID, class_weights=weights, **KINDS[kind]).to(
        device
    )


def plain_loss(kind: str, case: PixelLossCase, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The same loss in torch's own operations on the upsampled logits."""
    weights = _class_weights(case.shape[1]).to(device) if kind == "weighted" else None

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
        if kind == "OHEM":
            return _plain_ohem(full, targets)
        return F.cross_entropy(full, targets, weights, ignore_index=VOID)

    return loss


def _plain_ohem(full: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(full, targets, ignore_index=VOID, reduction="none")
    ranked = losses.detach().flatten()
    kept = min(OHEM_MIN_KEPT * len(targets), len(ranked))
    threshold = ranked.topk(kept).values[-1].clamp(max=-math.log(OHEM_THRESHOLD))
    return losses[(losses.detach() >= threshold) & (targets != VOID)].mean()


def _class_weights(classes: int) -> Tensor:
    return torch.linspace(0.5, 1.5, classes)


def benchmark_pixel_loss(case: PixelLossCase, rounds: int, device: str) -> str:
    """Measures each kind of loss, plain and this package's.

    Args:
        case: what to measure on.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A table of time and peak memory, forward and backward, and of their ratios.
    """
    actions = {
        f"{kind}, {'plain' if is_plain else 'ours'}": (kind, is_plain)
        for kind in KINDS
        for is_plain in (True, False)
    }
    memory = {
        name: peak_memory(make_action, *choice, case, device, device=device)
        for name, choice in actions.items()
    }
    seconds = interleaved_medians(
        {name: make_action(*choice, case, device) for name, choice in actions.items()},
        rounds,
        device,
        "pixel losses",
    )
    rows = []
    for kind in KINDS:
        plain, ours = f"{kind}, plain", f"{kind}, ours"
        rows.append(
            [
                kind,
                f"{1e3 * seconds[plain]:.1f}",
                f"{1e3 * seconds[ours]:.1f}",
                f"{seconds[ours] / seconds[plain]:.3f}",
                f"{memory[plain]:.0f}",
                f"{memory[ours]:.0f}",
                f"{memory[ours] / memory[plain]:.3f}",
            ]
        )
    size = "x".join(str(number) for number in case.shape)
    height, width = (8 * number for number in case.shape[2:])
    title = f"pixel loss, forward + backward: logits {size}, labels {height}x{width}"
    headers = ["loss", "plain ms", "ours ms", "ratio", "plain peak MB", "ours peak MB", "ratio"]
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def run(rounds: int, device: str) -> None:
    """Prints a table for each case.

    Args:
        rounds: timed rounds.
        device: ``"cpu"`` (on one thread) or ``"cuda"``.
    """
    announce(rounds, device)
    for case in CASES:
        print("\n" + benchmark_pixel_loss(case, rounds, device), flush=True)
