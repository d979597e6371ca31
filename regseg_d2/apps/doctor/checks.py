"""What the doctor tries out: imports, a training step, the distributed backends.

``command.py`` runs this module in a process of its own (``python -m regseg_d2.apps.doctor.checks FILE CHECK
...``), so that a check that crashes or hangs is reported like one that raises. Each check returns a
line to show, or raises; heavy imports stay inside the checks.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

OK, FAILED, SKIPPED = "ok", "failed", "skipped"

IMPORTED = (
    "numpy",
    "torch",
    "torchvision",
    "cv2",
    "PIL",
    "timm",
    "fvcore",
    "detectron2.config",
    "detectron2.data",
    "detectron2.modeling",
    "detectron2.engine",
    "detectron2.evaluation",
    "detectron2.projects.deeplab",
)
IMPORT_PREFIX = "import "


class CheckSkippedError(Exception):
    """A check that has nothing to try on this machine; the message says why."""


CHECKS: dict[str, Callable[[], str]] = {
    "training step on the CPU": lambda: _training_step("cpu"),
    "training step on the GPU": lambda: _training_step("cuda"),
    "distributed: gloo": lambda: _all_reduce("gloo", "cpu"),
    "distributed: nccl": lambda: _all_reduce("nccl", "cuda"),
}


def _skip_where_missing(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise CheckSkippedError("torch sees no GPU")


def _training_step(device: str) -> str:
    """One step of a small network with CAR."""
    _skip_where_missing(device)
    import torch
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    import regseg_d2.segmentor  # noqa: F401  (registers the networks)

    torch.manual_seed(0)
    model = build_model(_small_config(device)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    batch = [
        {
            "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
            "sem_seg": torch.randint(0, 3, (64, 64)),
            "height": 64,
            "width": 64,
            "file_name": f"{number}.png",
            "image_id": str(number),
        }
        for number in range(2)
    ]
    start = time.perf_counter()
    with EventStorage(0):
        losses = model(batch)
    total = sum(losses.values())
    total.backward()
    optimizer.step()
    if not torch.isfinite(total):
        raise FloatingPointError(f"the loss is {total.item()}")
    after = [p for p in model.parameters() if p.requires_grad]
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise RuntimeError("the optimizer's step changed no parameter")
    seconds = time.perf_counter() - start
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    return f"loss {total.item():.3f} in {seconds:.1f} s ({name})"


def _small_config(device: str) -> Any:
    """Returns the configuration of a ResNet-18 with a narrow FCN head and CAR."""
    from regseg_d2.config import get_regseg_cfg

    cfg = get_regseg_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "resnet18"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res5"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES = 3
    head.CONTEXT = "FCN"
    head.CONTEXT_CHANNELS = 16
    head.CONVS_DIM = 16
    cfg.MODEL.REGULARIZERS.NAMES = ["CAR"]
    return cfg


def _all_reduce(backend: str, device: str) -> str:
    """An all-reduce in a group of one process, as training on several uses it."""
    _skip_where_missing(device)
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_backend_available(backend):
        raise RuntimeError(f"this torch was built without {backend}")
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{os.path.join(folder, 'store')}"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            value = torch.tensor([3.0], device=device)
            dist.all_reduce(value)
        finally:
            dist.destroy_process_group()
    if value.item() != 3.0:
        raise RuntimeError(f"the sum over one process of 3 came out as {value.item()}")
    return "an all-reduce over one process works"


def run_check(name: str) -> dict[str, str]:
    """Runs one check.

    Returns:
        ``{"name", "status", "detail"}``, with status ``OK``, ``FAILED`` or ``SKIPPED``.
    """
    try:
        if name.startswith(IMPORT_PREFIX):
            module = importlib.import_module(name[len(IMPORT_PREFIX) :])
            detail = str(getattr(module, "__version__", ""))
        else:
            detail = CHECKS[name]()
    except CheckSkippedError as reason:
        return {"name": name, "status": SKIPPED, "detail": str(reason)}
    # Whatever a broken package raises is the answer that was asked for.
    except Exception as error:
        return {"name": name, "status": FAILED, "detail": f"{type(error).__name__}: {error}"}
    return {"name": name, "status": OK, "detail": detail}


def torch_facts() -> dict[str, str | bool | None]:
    """Returns what only an imported torch knows; Nones where it cannot be imported."""
    try:
        import torch
    except Exception:
        return {"cuda_build": None, "cuda_available": False}
    return {"cuda_build": torch.version.cuda or "", "cuda_available": torch.cuda.is_available()}


def main() -> None:
    """Runs the checks named on the command line; the file named first gets a line of JSON after each."""
    path, *names = sys.argv[1:]
    with open(path, "a", encoding="utf-8") as stream:
        for name in names:
            print(json.dumps(run_check(name)), file=stream, flush=True)
        print(json.dumps({"name": "torch", "facts": torch_facts()}), file=stream, flush=True)


if __name__ == "__main__":
    main()
