"""What inference costs from the network on, beside the plain way that holds all scores at full size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from tabulate import tabulate
from torch import Tensor, nn

from regseg_d2.apps.costs.measuring import announce, interleaved_medians, peak_memory
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor
from regseg_d2.evaluation.inference.predictor import scale_image
from regseg_d2.evaluation.inference.sliding import window_starts
from regseg_d2.segmentor.meta_architecture import RegularizedSegmentor

NUM_CLASSES = 150
_STRIDE, _CHANNELS = 8, 16


@dataclass(frozen=True)
class InferenceCase:
    """An image and how to treat it.

    Attributes:
        name: of the protocol.
        size: height and width of the image.
        protocol: the protocol.
    """

    name: str
    size: tuple[int, int]
    protocol: InferenceProtocol


_WINDOWS = InferenceProtocol(mode="slide", crop_size=(512, 512), stride=(341, 341))
_VIEWS = InferenceProtocol(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
CASES = (
    InferenceCase("whole", (2000, 3000), InferenceProtocol()),
    InferenceCase("slide", (2000, 3000), _WINDOWS),
    InferenceCase("whole", (512, 683), InferenceProtocol()),
    InferenceCase("slide", (512, 683), _WINDOWS),
    InferenceCase("six scales, flip", (512, 683), _VIEWS),
)


class _Patches(Backbone):
    """One convolution of stride 8: a backbone that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, _CHANNELS, _STRIDE, stride=_STRIDE)
        self._out_features = ["res3"]
        self._out_feature_channels = {"res3": _CHANNELS}
        self._out_feature_strides = {"res3": _STRIDE}

    @property
    def size_divisibility(self) -> int:
        return _STRIDE

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"res3": self.convolution(images)}


def make_model(num_classes: int, device: str) -> RegularizedSegmentor:
    """A network of few operations with logits at an eighth of the image's size.

    Args:
        num_classes: K.
        device: ``"cpu"`` or ``"cuda"``.
    """
    torch.manual_seed(0)
    head = SemSegFPNHead(
        {"res3": ShapeSpec(channels=_CHANNELS, stride=_STRIDE)},
        num_classes=num_classes,
        conv_dims=_CHANNELS,
        common_stride=_STRIDE,
        norm="",
    )
    model = RegularizedSegmentor(
        regularizers={},
        backbone=_Patches(),
        sem_seg_head=head,
        pixel_mean=[127.0] * 3,
        pixel_std=[60.0] * 3,
    )
    return model.to(device).eval()


def make_image(size: tuple[int, int]) -> Tensor:
    """Draws an image, ``(3, H, W)`` of uint8; the same at each call."""
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def make_action(case: InferenceCase, is_plain: bool, num_classes: int, device: str) -> Callable[[], Tensor]:
    """From an image to its labels.

    Args:
        case: the image and the protocol.
        is_plain: hold the scores of all classes at full size, as Detectron2 and mmsegmentation do.
        num_classes: K.
        device: ``"cpu"`` or ``"cuda"``.
    """
    model, image = make_model(num_classes, device), make_image(case.size)
    if not is_plain:
        predictor = Predictor(model, case.protocol)
        return lambda: predictor([{"image": image}])[0]["sem_seg_labels"]

    @torch.no_grad()
    def plain() -> Tensor:
        if case.protocol.averages_probabilities:
            return _plain_views(model, image, case.protocol).argmax(dim=0)
        if case.protocol.mode == "slide":
            return _plain_slide(model, image, case.protocol).argmax(dim=0)
        return model([{"image": image}])[0]["sem_seg"].argmax(dim=0)

    return plain


def _plain_slide(model: nn.Module, image: Tensor, protocol: InferenceProtocol) -> Tensor:
    total = count = None
    _, height, width = image.shape
    for top in window_starts(height, protocol.crop_size[0], protocol.stride[0]):
        for left in window_starts(width, protocol.crop_size[1], protocol.stride[1]):
            rows, columns = (
                slice(start, start + side)
                for start, side in zip((top, left), protocol.crop_size, strict=True)
            )
            logits = model([{"image": image[:, rows, columns]}])[0]["sem_seg"]
            if total is None:
                total = logits.new_zeros(len(logits), height, width)
                count = logits.new_zeros(1, height, width)
            total[:, rows, columns] += logits
            count[:, rows, columns] += 1
    return total / count


def _plain_views(model: nn.Module, image: Tensor, protocol: InferenceProtocol) -> Tensor:
    total, size = 0.0, (image.shape[1], image.shape[2])
    for scale in protocol.scales:
        scaled = scale_image(image, scale)
        for is_mirrored in (False, True):
            view = scaled.flip(-1) if is_mirrored else scaled
            logits = model([{"image": view, "height": size[0], "width": size[1]}])[0]["sem_seg"]
            probabilities = F.softmax(logits, dim=0)
            total = total + (probabilities.flip(-1) if is_mirrored else probabilities)
    return total / (2 * len(protocol.scales))


def benchmark_inference(case: InferenceCase, rounds: int, device: str) -> list[str]:
    """Measures the plain way and this package's.

    Args:
        case: what to measure on.
        rounds: timed rounds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A row: what, milliseconds and their ratio, peak memory in MB and its ratio, how many labels agree.
    """
    ways = {"plain": True, "ours": False}
    memory = {
        name: peak_memory(make_action, case, is_plain, NUM_CLASSES, device, device=device)
        for name, is_plain in ways.items()
    }
    actions = {name: make_action(case, is_plain, NUM_CLASSES, device) for name, is_plain in ways.items()}
    labels = {name: action().long() for name, action in actions.items()}
    seconds = interleaved_medians(actions, rounds, device, case.name)
    agreement = (labels["plain"] == labels["ours"]).double().mean().item()
    return [
        f"{case.name}, {case.size[0]} x {case.size[1]}",
        f"{1e3 * seconds['plain']:.0f}",
        f"{1e3 * seconds['ours']:.0f}",
        f"{seconds['ours'] / seconds['plain']:.3f}",
        f"{memory['plain']:.0f}",
        f"{memory['ours']:.0f}",
        f"{memory['ours'] / memory['plain']:.3f}",
        f"{100 * agreement:.5g} %",
    ]


def run(rounds: int, device: str) -> None:
    """Prints a table of all cases.

    Args:
        rounds: timed rounds.
        device: ``"cpu"`` (on one thread) or ``"cuda"``.
    """
    announce(rounds, device)
    print(f"From image to labels, {NUM_CLASSES} classes, a network of next to no cost with stride {_STRIDE}")
    headers = ["", "plain ms", "ours ms", "ratio", "plain peak MB", "ours peak MB", "ratio", "same labels"]
    rows = [benchmark_inference(case, rounds, device) for case in CASES]
    print(tabulate(rows, headers, disable_numparse=True), flush=True)
