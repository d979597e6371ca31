"""What the losses of each regularizer cost alone, as ratios measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from regseg_d2.apps.costs.measuring import interleaved_medians, peak_memory
from regseg_d2.regularizers import REGULARIZER, Regularizer
from regseg_d2.state.distribution_memory import DistributionMemory
from regseg_d2.state.memory_bank import MemoryBank

CHANNELS = 256
CLASSES_PER_IMAGE = 12
WRONG_SHARE = 0.2
REFERENCE = "upsample + cross entropy"


@dataclass(frozen=True)
class LossCase:
    """Tensors to measure on: embeddings ``2 x 256 x h x w``, labels eight times as large.

    Attributes:
        num_classes: number of classes K.
        size: height and width of the embeddings and logits.
    """

    num_classes: int
    size: tuple[int, int]


LOSS_CASES = (LossCase(19, (64, 128)), LossCase(150, (64, 64)))


@dataclass(frozen=True)
class Method:
    """A regularizer with some of its options.

    Attributes:
        name: name in the registry.
        options: arguments that are not the default.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    "CAR": Method("CAR"),
    "RegionContrast, bank 2975": Method("RegionContrast", {"bank_size": 2975}),
    "PNE": Method("PNE"),
    "RCH": Method("RCH"),
    "MDRL": Method("MDRL"),
    "ContrastSeg": Method("ContrastSeg"),
    "ContrastSeg, memory 5000": Method(
        "ContrastSeg", {"memory": True, "memory_size": 5000, "max_views": 1, "temperature": 0.07}
    ),
}


@dataclass(frozen=True)
class Tensors:
    """What a loss works on.

    Attributes:
        feature: embeddings ``(N, C, h, w)``.
        logits: ``(N, K, h, w)``, about a fifth of the pixels wrong.
        targets: labels ``(N, 8h, 8w)``, 12 classes an image.
    """

    feature: Tensor
    logits: Tensor
    targets: Tensor


def make_tensors(case: LossCase, device: str) -> Tensors:
    """Draws the tensors of a case, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    height, width = case.size
    feature = torch.randn(2, CHANNELS, height, width, generator=generator)
    present = torch.stack(
        [torch.randperm(case.num_classes, generator=generator)[:CLASSES_PER_IMAGE] for _ in range(2)]
    )

    def draw_classes(*shape: int) -> Tensor:
        picks = torch.randint(0, CLASSES_PER_IMAGE, (2, *shape), generator=generator)
        return present.gather(1, picks.flatten(1)).view_as(picks)

    labels = draw_classes(height // 8, width // 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    wrong = torch.rand(2, height, width, generator=generator) < WRONG_SHARE
    predicted = torch.where(wrong, draw_classes(height, width), labels)
    logits = torch.randn(2, case.num_classes, height, width, generator=generator)
    logits.scatter_add_(1, predicted.unsqueeze(1), torch.full((2, 1, height, width), 8.0))
    targets = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Tensors(
        feature.to(device).requires_grad_(True), logits.to(device).requires_grad_(True), targets.to(device)
    )


def make_regularizer(method: Method, num_classes: int, device: str) -> Regularizer:
    """Builds a regularizer on bare embeddings: without its own projection, with its memory full."""
    regularizer = REGULARIZER.get(method.name)(num_classes, CHANNELS, **method.options)
    if hasattr(regularizer, "projection"):
        regularizer.projection = nn.Identity()
    regularizer.to(device)
    for module in regularizer.modules():
        _fill(module)
    return regularizer


def _fill(module: nn.Module) -> None:
    if isinstance(module, MemoryBank):
        module.rows.copy_(F.normalize(torch.randn(module.rows.shape), dim=2))
        module.written.fill_(module.capacity)
    elif isinstance(module, DistributionMemory):
        module.distributions.copy_(F.normalize(torch.randn(module.distributions.shape), dim=2))
        module.counts.fill_(1)


def make_loss_action(label: str, case: LossCase, device: str) -> Callable[[], None]:
    """Forward and backward of one loss.

    Args:
        label: a key of :data:`METHODS`, or :data:`REFERENCE`.
        case: what to measure on.
        device: ``"cpu"`` or ``"cuda"``.
    """
    tensors = make_tensors(case, device)
    if label == REFERENCE:
        return lambda: _backward(_cross_entropy(tensors), tensors)
    regularizer = make_regularizer(METHODS[label], case.num_classes, device)

    def action() -> None:
        losses = regularizer(tensors.feature, tensors.targets, logits=tensors.logits)
        _backward(sum(losses.values()), tensors)

    return action


def _backward(loss: Tensor, tensors: Tensors) -> None:
    # Adding to an old gradient would be a cost that a feature inside a network does not have.
    tensors.feature.grad = tensors.logits.grad = None
    loss.backward()


def _cross_entropy(tensors: Tensors) -> Tensor:
    full = F.interpolate(tensors.logits, size=tensors.targets.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, tensors.targets, ignore_index=255)


def benchmark_losses(case: LossCase, rounds: int, device: str) -> str:
    """Measures each regularizer's losses alone, beside upsampling and cross entropy.

    Args:
        case: what to measure on.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A table with seconds, forward and backward, their ratios to upsampling and cross entropy, and
        peak memory.
    """
    labels = [REFERENCE, *METHODS]
    memory = {label: peak_memory(make_loss_action, label, case, device, device=device) for label in labels}
    actions = {label: make_loss_action(label, case, device) for label in labels}
    seconds = interleaved_medians(actions, rounds, device, "losses")
    rows = [
        [
            label,
            f"{1e3 * seconds[label]:.1f}",
            f"{seconds[label] / seconds[REFERENCE]:.3f}",
            f"{memory[label]:.0f}",
        ]
        for label in labels
    ]
    height, width = case.size
    title = (
        f"losses alone, forward + backward, without projections: embeddings 2x{CHANNELS}x{height}x{width}, "
        f"{case.num_classes} classes"
    )
    headers = ["loss", "ms", "x upsample + CE", "peak MB"]
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"
