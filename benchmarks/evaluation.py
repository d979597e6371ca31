"""What evaluating an image costs, from its logits on, beside Detectron2's evaluator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from regseg_d2.apps.costs.measuring import announce, interleaved_medians
from regseg_d2.data.images import open_image
from regseg_d2.data.labels import label_reader_for
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.evaluation.inference.argmax import argmax_classes

VOID = 255
_STRIDE = 8
_BLOCK = 32


@dataclass(frozen=True)
class EvaluationCase:
    """An image to evaluate.

    Attributes:
        name: what it is like.
        num_classes: K.
        size: height and width.
    """

    name: str
    num_classes: int
    size: tuple[int, int]


CASES = (EvaluationCase("ADE20K", 150, (512, 683)), EvaluationCase("Cityscapes", 19, (1024, 2048)))


def make_label(case: EvaluationCase) -> Tensor:
    """Draws classes in blocks, a tenth void; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (-(-side // _BLOCK) for side in case.size)
    blocks = torch.randint(0, case.num_classes, (rows, columns), generator=generator)
    blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = VOID
    label = blocks.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
    return label[: case.size[0], : case.size[1]]


def make_logits(case: EvaluationCase) -> Tensor:
    """Draws logits at an eighth of the size that favour the true class, and interpolates them."""
    generator = torch.Generator().manual_seed(1)
    true_class = make_label(case)[::_STRIDE, ::_STRIDE].unsqueeze(0)
    logits = torch.randn(case.num_classes, *true_class.shape[1:], generator=generator)
    favoured = torch.full(true_class.shape, 4.0).masked_fill(true_class == VOID, 0.0)
    logits.scatter_add_(0, true_class.masked_fill(true_class == VOID, 0), favoured)
    return F.interpolate(logits[None], size=case.size, mode="bilinear", align_corners=False)[0]


@contextmanager
def registered(case: EvaluationCase) -> Iterator[tuple[str, dict[str, str]]]:
    """Registers a data set of one label file.

    Args:
        case: its label.

    Yields:
        The name of the data set and its record.
    """
    name = f"benchmark_{case.name}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.png"
        Image.fromarray(make_label(case).numpy().astype(np.uint8)).save(path)
        record = {"file_name": "image.png", "sem_seg_file_name": str(path)}
        DatasetCatalog.register(name, lambda: [record])
        classes = [str(i) for i in range(case.num_classes)]
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=VOID)
        try:
            yield name, record
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def read_as_detectron2(path: str, dtype: Any = None) -> np.ndarray:
    """Reads a label as Detectron2's evaluator does by default; its own reader fails with NumPy 2."""
    with open_image(path, "label") as image:
        return np.array(image, dtype=dtype)


def make_evaluators(name: str) -> dict[str, Any]:
    """Detectron2's evaluator and this package's, by name.

    Args:
        name: of the data set.
    """
    return {
        "Detectron2": SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=read_as_detectron2),
        "ours": StreamingSemSegEvaluator(name, distributed=False),
    }


def make_actions(case: EvaluationCase, name: str, record: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Both evaluators on one image, and the steps that both of them take.

    Args:
        case: the image.
        name: of its data set.
        record: its record.
    """
    logits = make_logits(case)
    read = label_reader_for(name)
    path = record["sem_seg_file_name"]

    def evaluate(evaluator: Any) -> Callable[[], None]:
        def action() -> None:
            evaluator.reset()  # Detectron2's would keep the image of every round
            evaluator.process([record], [{"sem_seg": logits}])

        return action

    actions = {name: evaluate(evaluator) for name, evaluator in make_evaluators(name).items()}
    return {
        **actions,
        "Detectron2: argmax": lambda: logits.argmax(dim=0),
        "ours: argmax": lambda: argmax_classes(logits),
        "Detectron2: label file": lambda: read_as_detectron2(path, dtype=int),
        "ours: label file": lambda: read(path),
    }


def scores(case: EvaluationCase) -> dict[str, dict[str, float]]:
    """The scores of both evaluators on the image of a case, in percent."""
    with registered(case) as (name, record):
        results = {}
        for key, evaluator in make_evaluators(name).items():
            evaluator.reset()
            evaluator.process([record], [{"sem_seg": make_logits(case)}])
            results[key] = evaluator.evaluate()["sem_seg"]
        return results


def benchmark_evaluation(case: EvaluationCase, rounds: int) -> str:
    """Measures both evaluators.

    Args:
        case: what to measure on.
        rounds: timed rounds.

    Returns:
        A table of milliseconds, and the scores.
    """
    with registered(case) as (name, record):
        seconds = interleaved_medians(make_actions(case, name, record), rounds, "cpu", case.name)
    rows = []
    for what, key in (
        ("an image, file to counts", ""),
        ("argmax", ": argmax"),
        ("label file", ": label file"),
    ):
        plain, ours = seconds[f"Detectron2{key}"], seconds[f"ours{key}"]
        rows.append([what, f"{1e3 * plain:.1f}", f"{1e3 * ours:.1f}", f"{ours / plain:.3f}"])
    found = scores(case)
    height, width = case.size
    return "\n".join(
        [
            f"{case.name}-like: logits {case.num_classes} x {height} x {width}",
            tabulate(rows, ["", "Detectron2 ms", "ours ms", "ratio"], disable_numparse=True),
            f"mIoU: Detectron2 {found['Detectron2']['mIoU']:.4f}, ours {found['ours']['mIoU']:.4f}",
            "mIoU_predicted, where classes that are only predicted count as 0 (mmsegmentation): "
            f"{found['ours']['mIoU_predicted']:.4f}",
        ]
    )


def run(rounds: int) -> None:
    """Prints a table for each case.

    Args:
        rounds: timed rounds.
    """
    announce(rounds, "cpu")
    for case in CASES:
        print("\n" + benchmark_evaluation(case, rounds), flush=True)
