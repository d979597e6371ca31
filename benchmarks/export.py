"""Networks in each format of an export: how far from torch, how long it takes, and the latency."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from regseg_d2.apps.costs.measuring import announce, interleaved_medians
from regseg_d2.apps.export.agreement import compare, made_up_images
from regseg_d2.apps.export.formats import FORMATS, ExportError, Runner
from regseg_d2.apps.export.network import SCORES, ExportedNetwork
from regseg_d2.config.files import load_config
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.export import inference_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        name: for the table.
        config: below ``configs/``.
        any_size: whether it is exported for images of any size.
    """

    name: str
    config: str
    any_size: bool = True


CASES = (
    Case("FCN, ResNet-50", "_base_/models/fcn_resnet50_os8.yaml"),
    Case("DeepLabV3, EfficientNet-Lite0", "_base_/models/deeplabv3_efficientnet_lite0.yaml"),
    Case("DeepLabV3+, ResNet-50", "_base_/models/deeplabv3plus_resnet50_os8.yaml"),
    Case("UPerNet, Swin-T", "_base_/models/upernet_swin_tiny.yaml"),
    Case("SegFormer, MiT-B0", "_base_/models/segformer_mit_b0.yaml"),
    Case("OCRNet, HRNet-W18", "_base_/models/ocrnet_hrnet_w18.yaml"),
    Case("Mask2Former of Hugging Face, small", "hf/cooccurrence_mask2former.yaml", any_size=False),
)
#: Height and width; all are larger than a window of Swin's last stage.
SIZES = ((256, 320), (385, 259), (288, 416))


def run(rounds: int, only: Sequence[str] = ()) -> None:
    """Prints the table.

    Args:
        rounds: timed rounds.
        only: parts of names of the networks to take; empty is all.
    """
    announce(rounds, "cpu")
    print(f"Scores of random weights at {', '.join(f'{h} x {w}' for h, w in SIZES)}; latency at the first.")
    for case in CASES:
        if not only or any(word.lower() in case.name.lower() for word in only):
            headers = (case.name, "largest difference", "equal labels", "export s", "ms", "torch ms")
            print(tabulate(list(_rows(case, rounds)), headers=headers, disable_numparse=True), flush=True)
            print()


def _rows(case: Case, rounds: int) -> Iterator[tuple[str, ...]]:
    segmentor = _random_network(case)
    for name in FORMATS:
        try:
            yield (name, *_measure(case, segmentor, name, rounds))
        except ExportError as error:
            yield name, f"no: {error}", "", "", "", ""


def _random_network(case: Case) -> nn.Module:
    """A network whose batch norms and classifier are not those that a training starts from."""
    torch.manual_seed(0)
    cfg = load_config(str(CONFIGS / case.config), ["MODEL.DEVICE", "cpu"])
    model = inference_model(build_model(cfg))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif name.endswith("predictor.weight"):
                tensor.normal_(std=0.1)
    return model.requires_grad_(False)


def _measure(case: Case, segmentor: Any, name: str, rounds: int) -> tuple[str, ...]:
    """Exports at any size, or at each of the sizes; the largest of all differences."""
    agreements, seconds, runners = [], 0.0, []
    groups = [list(SIZES)] if case.any_size else [[size] for size in SIZES]
    file_format = FORMATS[name]
    for sizes in groups:
        network = ExportedNetwork(segmentor, SCORES, size=None if case.any_size else sizes[0]).eval()
        example = made_up_images((2, sizes[0][0], sizes[0][1] + 32 * case.any_size), seed=0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"network{file_format.suffix}")
            start = time.perf_counter()
            file_format.write(network, example, path, "{}", any_size=case.any_size)
            seconds += time.perf_counter() - start
            load: Runner = file_format.load(path)
            runners.append((network, load))
            shapes = [(1 + index % 2, *size) for index, size in enumerate(sizes)]
            agreements += compare(load, network, SCORES, shapes, file_format.title)
    network, load = runners[0]
    images = made_up_images((1, *SIZES[0]), seed=0)
    medians = interleaved_medians(
        {"file": _action(load, images), "torch": _action(network, images)}, rounds, "cpu", name
    )
    return (
        f"{max(agreement.difference for agreement in agreements):.1e}",
        f"{min(agreement.equal for agreement in agreements):.4%}",
        f"{seconds / len(groups):.0f}",
        f"{medians['file'] * 1e3:.0f}",
        f"{medians['torch'] * 1e3:.0f}",
    )


def _action(load: Runner, images: torch.Tensor) -> Callable[[], None]:
    def run_once() -> None:
        with torch.no_grad():
            load(images)

    return run_once
