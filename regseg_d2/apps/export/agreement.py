"""Whether a file computes what the network does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from regseg_d2.apps.export.formats import ExportError, Runner
from regseg_d2.apps.export.network import LABELS

#: Number of images, height and width.
Shape = tuple[int, int, int]
#: Largest difference that is taken for rounding, as a share of the largest score.
TOLERANCE = 1e-3
#: Share of the pixels whose best class has to be the same.
LEAST_EQUAL = 0.999


@dataclass(frozen=True)
class Agreement:
    """How far a file and the network are from each other on one input.

    Attributes:
        shape: number of images, height and width.
        difference: largest difference of two scores, as a share of the largest score; of labels, by how much
            the network's score of its own label exceeds that of the file's.
        equal: share of the places with the same label.
    """

    shape: Shape
    difference: float
    equal: float

    def is_within(self, tolerance: float) -> bool:
        """Whether it is rounding; a NaN is not."""
        return self.difference <= tolerance and self.equal >= LEAST_EQUAL


def compare(
    run: Runner, scores_of: Callable[[Tensor], Tensor], output: str, shapes: Sequence[Shape], title: str
) -> list[Agreement]:
    """Compares a file with the network on made-up images.

    Args:
        run: the file.
        scores_of: the network's scores of images, at the size of the output.
        output: what the file puts out, one of ``OUTPUTS``.
        shapes: of the inputs.
        title: of the format, for errors.

    Raises:
        ExportError: the file cannot run on one of them, or puts out another shape.
    """
    return [_compare(run, scores_of, output, shape, title, seed) for seed, shape in enumerate(shapes)]


def _compare(
    run: Runner, scores_of: Callable[[Tensor], Tensor], output: str, shape: Shape, title: str, seed: int
) -> Agreement:
    images = made_up_images(shape, seed)
    with torch.no_grad():
        scores = scores_of(images)
        try:
            result = run(images)
        except Exception as error:
            message = " ".join(str(error).split())[:300]
            raise ExportError(
                f"The {title} file does not run on {describe(shape)}, where the network does "
                f"({type(error).__name__}: {message}). Nothing was written. Give --size for images of one "
                "size, --check-sizes of those that you have, or take another format."
            ) from error
    labels = scores.argmax(dim=1)
    expected = labels.shape if output == LABELS else scores.shape
    if result.shape != expected:
        raise ExportError(
            f"The {title} file gives {tuple(result.shape)} for {describe(shape)}, and the network "
            f"{tuple(expected)}. Nothing was written. Give --size for images of one size, or take another "
            "format."
        )
    if output == LABELS:
        found = result.long()
        chosen = scores.gather(1, found.unsqueeze(1).clamp(0, scores.shape[1] - 1))
        difference = scores.amax(dim=1, keepdim=True) - chosen
    else:
        found, difference = result.argmax(dim=1), result - scores
    scale = scores.abs().max().clamp(min=torch.finfo(scores.dtype).tiny)
    equal = (found == labels).double().mean().item()
    return Agreement(shape, (difference.abs().max() / scale).item(), equal)


def made_up_images(shape: Shape, seed: int) -> Tensor:
    """Smooth random images with some noise, ``(N, 3, H, W)`` float32 of whole numbers 0 to 255."""
    number, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 6, 8, generator=generator) * 255
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    noise = torch.randn(number, 3, height, width, generator=generator) * 8
    return (smooth + noise).clamp(0, 255).round()


def require_agreement(agreements: Sequence[Agreement], tolerance: float, title: str) -> None:
    """Raises ExportError where one of them is more than rounding."""
    bad = [agreement for agreement in agreements if not agreement.is_within(tolerance)]
    if bad:
        raise ExportError(
            f"The {title} file does not compute what the network does, and was not written:\n"
            f"{table(agreements)}\nExpected a difference of at most {tolerance:g} of the largest score, and "
            f"{LEAST_EQUAL:.1%} equal labels. Give --size for images of one size, or take another format; if "
            "the numbers are good enough for you, --tolerance."
        )


def table(agreements: Sequence[Agreement]) -> str:
    """The numbers for people."""
    rows = [
        (describe(agreement.shape), f"{agreement.difference:.1e}", f"{agreement.equal:.4%}")
        for agreement in agreements
    ]
    return tabulate(rows, headers=("images", "largest difference", "equal labels"), tablefmt="simple")


def describe(shape: Shape) -> str:
    """A shape in words."""
    return f"{shape[0]} x {shape[1]} x {shape[2]}"
