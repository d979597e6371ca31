"""What looking at a network costs: time for an image, and memory that does not grow with the images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate

from regseg_d2.apps.costs.measuring import peak_memory
from regseg_d2.evaluation.looking.findings import Collector
from regseg_d2.evaluation.looking.views import View

_STRIDE = 8
_BLOCK = 64
_TIMES = (1, 4)


@dataclass(frozen=True)
class LookingCase:
    """Images to look at.

    Attributes:
        num_classes: K.
        size: height and width.
        channels: of the feature, at an eighth of the size.
        images: how many.
    """

    num_classes: int = 150
    size: tuple[int, int] = (512, 683)
    channels: int = 512
    images: int = 100


def make_views(case: LookingCase) -> Iterator[View]:
    """Draws images with a dozen classes each, of which about three quarters of the pixels are right.

    A tenth of the pixels are void. Image n is the same at each call.
    """
    height, width = case.size
    cells = -(-height // _STRIDE), -(-width // _STRIDE)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(case.num_classes, case.channels, generator=generator)
    for number in range(case.images):
        generator.manual_seed(number + 1)
        palette = torch.randint(0, case.num_classes, (12,), generator=generator)
        rows, columns = (-(-side // _BLOCK) for side in case.size)
        blocks = palette[torch.randint(0, len(palette), (rows, columns), generator=generator)]
        blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = -1
        label = blocks.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[:height, :width].contiguous()
        true_class = label[::_STRIDE, ::_STRIDE].clamp(min=0)
        logits = torch.randn(case.num_classes, *cells, generator=generator)
        logits.scatter_add_(0, true_class.unsqueeze(0), torch.full((1, *cells), 2.5))
        noise = torch.randn(case.channels, *cells, generator=generator)
        yield View(
            name=f"{number:06}.png",
            pixels=np.zeros((height, width, 3), dtype=np.uint8),
            label=label,
            scores=F.interpolate(logits[None], size=case.size, mode="bilinear", align_corners=False)[0],
            feature=directions[true_class].permute(2, 0, 1) + noise,
            cell_size=(float(_STRIDE), float(_STRIDE)),
        )


def make_action(case: LookingCase, looks: bool) -> Callable[[], None]:
    """Goes through the images of a case; with ``looks`` they are looked at, too."""

    def action() -> None:
        collector = Collector(case.num_classes)
        for view in make_views(case):
            if looks:
                collector.add(view)
        if looks:
            collector.findings()

    return action


def seconds_per_image(case: LookingCase) -> list[float]:
    """Seconds that each image takes to be looked at."""
    collector = Collector(case.num_classes)
    seconds = []
    for view in make_views(case):
        start = time.perf_counter()
        collector.add(view)
        seconds.append(time.perf_counter() - start)
    return seconds


def run(case: LookingCase) -> None:
    """Prints time and memory at one and four times the images.

    Args:
        case: the images.
    """
    torch.set_num_threads(1)
    height, width = case.size
    megabytes = case.num_classes * height * width * 4 / 1e6
    print(f"torch {torch.__version__}, one CPU thread")
    print(
        f"{case.num_classes} classes, {height} x {width}: scores of {megabytes:.0f} MB an image, "
        f"{case.channels} channels at 1/{_STRIDE}"
    )
    without = peak_memory(make_action, case, False, device="cpu")
    print(f"going through them without looking: {without:.0f} MB more than before")
    rows = []
    for times in _TIMES:
        many = replace(case, images=times * case.images)
        peak = peak_memory(make_action, many, True, device="cpu")
        seconds = [1e3 * second for second in seconds_per_image(many)]
        median, slowest = f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}"
        rows.append([many.images, f"{peak:.0f}", f"{sum(seconds) / 1e3:.0f}", median, slowest])
    names = ["images", "peak MB", "s in all", "median ms an image", "slowest"]
    print(tabulate(rows, names, disable_numparse=True), flush=True)
