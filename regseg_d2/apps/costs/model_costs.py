"""What a config's network costs, at inference and in training, without and with its regularizers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from regseg_d2.apps.costs.flops import FlopCount, count_inference_flops, count_training_flops
from regseg_d2.apps.costs.measuring import interleaved_medians, peak_memory
from regseg_d2.common.errors import ConfigError
from regseg_d2.data.class_masks import class_masks
from regseg_d2.engine.optim import build_gradient_clipper, build_optimizer
from regseg_d2.engine.step import TrainingStep, amp_dtype
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.export import inference_model

INFERENCE, TRAINING = "inference", "training step"
# Side of the blocks of one class in the labels of the batch.
BLOCK = 32


@dataclass(frozen=True)
class Row:
    """Costs of one inference or training step.

    Attributes:
        what: ``"inference"`` of one image or ``"training step"``.
        regularizers: names of the regularizers that the model is trained with; none for the baseline.
        parameters: number of parameters of the model, with what only training needs where it trains.
        flops: multiply-adds; see ``flops.py`` for what counts.
        seconds: median over rounds, or None where it was not measured.
        peak_mb: memory beyond the weights, or None where it was not measured.
    """

    what: str
    regularizers: tuple[str, ...]
    parameters: int
    flops: int
    seconds: float | None = None
    peak_mb: float | None = None

    def __str__(self) -> str:
        if not self.regularizers:
            return f"{self.what}, baseline"
        joint = "with" if self.what == TRAINING else "trained with"
        return f"{self.what}, {joint} {', '.join(self.regularizers)}"


@dataclass(frozen=True)
class ModelCosts:
    """Costs of a config's network.

    Attributes:
        rows: inference of the baseline and, where the config has regularizers, of the model trained with
            them; then their training steps.
        uncounted: how often operations occur at inference that are in no count of multiply-adds.
        augment: name of the stage that stays at inference and that the baseline is without, or "".
    """

    setting: dict[str, Any]
    rows: tuple[Row, ...]
    uncounted: dict[str, int]
    augment: str

    @property
    def inference_equals_baseline(self) -> bool | None:
        """Whether parameters and multiply-adds of both inferences agree; None with one of them alone."""
        inferences = {(row.parameters, row.flops) for row in self.rows if row.what == INFERENCE}
        trained = any(row.regularizers for row in self.rows)
        return len(inferences) == 1 if trained else None


@dataclass(frozen=True)
class _Case:
    """What to measure for a row.

    ``maker`` is a function of this module and arguments that make the same action in another process.
    """

    row: Row
    action: Callable[[], None]
    maker: tuple[Any, ...]


def analyze(
    cfg: CfgNode, *, size: tuple[int, int], batch_size: int, rounds: int, only_counts: bool = False
) -> ModelCosts:
    """Counts and measures.

    The baseline is the same config without regularizers, and without the ``AUGMENT`` stage that one of
    them has to train. Inference is of the exported model (``export.py``) on one image, a training step is
    the trainer's on random images of ``INPUT.CROP.SIZE``, with its optimizer and precision. Memory banks
    are empty at its start.

    Args:
        cfg: a config whose ``MODEL.DEVICE`` is there.
        size: height and width of the image at inference.
        batch_size: images of a training step.
        rounds: timed rounds, in which all take their turn.
        only_counts: leave time and memory out.

    Raises:
        ConfigError: an argument is not positive, or the model cannot be exported.
    """
    if min(*size, batch_size, rounds) < 1:
        raise ConfigError(
            f"size is {size}, the batch {batch_size} and rounds {rounds}; expected numbers of 1 or more"
        )
    cfg = _prepared(cfg)
    variants = [without_regularizers(cfg)]
    if cfg.MODEL.REGULARIZERS.NAMES:
        variants.append(cfg)
    inferences, uncounted = [], {}
    for variant in variants:
        case, flops = _inference_case(variant, size)
        inferences.append(case)
        uncounted.update(flops.uncounted)
    cases = inferences + [_training_case(variant, batch_size) for variant in variants]
    rows = [case.row for case in cases]
    if not only_counts:
        rows = _measure(cases, rounds, torch.device(cfg.MODEL.DEVICE).type)
    return ModelCosts(
        setting=_setting(cfg, size, batch_size, rounds),
        rows=tuple(rows),
        uncounted=uncounted,
        augment=cfg.MODEL.SEM_SEG_HEAD.AUGMENT,
    )


def without_regularizers(cfg: CfgNode) -> CfgNode:
    """Returns the config of the baseline."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.REGULARIZERS.NAMES = []
    cfg.MODEL.SEM_SEG_HEAD.AUGMENT = ""
    return cfg


def make_inference(dumped: str, size: tuple[int, int]) -> Callable[[], None]:
    """Inference of one random image."""
    return _inference(_exported(CfgNode.load_cfg(dumped)), size)


def make_training_step(dumped: str, batch_size: int) -> Callable[[], None]:
    """The trainer's step on a batch of random images."""
    cfg = CfgNode.load_cfg(dumped)
    return _training_step(cfg, _build(cfg), batch_size)


def random_batch(cfg: CfgNode, batch_size: int) -> list[dict[str, Any]]:
    """Images of ``INPUT.CROP.SIZE`` with labels in blocks of one class, and a few void pixels.

    With ``INPUT.CLASS_MASKS`` they have one mask a class, too.
    """
    height, width = cfg.INPUT.CROP.SIZE
    head = cfg.MODEL.SEM_SEG_HEAD
    generator = torch.Generator().manual_seed(0)
    batch = []
    for index in range(batch_size):
        grid = (-(-height // BLOCK), -(-width // BLOCK))
        blocks = torch.randint(0, head.NUM_CLASSES, grid, generator=generator)
        labels = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:height, :width].clone()
        labels[: height // 16] = head.IGNORE_VALUE
        image = _random_image((height, width), generator)
        sample = {"image": image, "sem_seg": labels, "file_name": f"{index}.png"}
        if cfg.INPUT.CLASS_MASKS:
            sample["instances"] = class_masks(labels, head.IGNORE_VALUE)
        batch.append(sample)
    return batch


def render(costs: ModelCosts) -> str:
    """Returns the table and what has to be known about it."""
    setting = costs.setting
    height, width = setting["size"]
    crop_height, crop_width = setting["crop_size"]
    uncounted = ", ".join(f"{name} ({count})" for name, count in costs.uncounted.items()) or "none"
    lines = [
        f"inference of 1 image of {height}x{width}, training step of {setting['batch_size']} crops of "
        f"{crop_height}x{crop_width}; torch {setting['torch']}, {setting['device']}",
        _table(costs.rows),
        "FLOPs: one multiplication with one addition is one; a training step's are those of convolutions, "
        "matrix products and attention, forward and backward. Memory is what is taken beyond the weights.",
        f"In no count of inference (number of times): {uncounted}",
    ]
    if costs.inference_equals_baseline is not None:
        lines.append(_verdict(costs))
    return "\n".join(lines) + "\n"


def as_data(costs: ModelCosts) -> dict[str, Any]:
    """Returns all of it in plain containers, for JSON."""
    return {**asdict(costs), "inference_equals_baseline": costs.inference_equals_baseline}


def _ratio(value: float | None, baseline: float | None) -> str:
    return f"{value / baseline:.3f}" if value is not None and baseline else ""


def _table(rows: Sequence[Row]) -> str:
    baselines = {row.what: row for row in rows if not row.regularizers}
    headers = ["", "parameters", "GFLOPs"]
    cells = [[str(row), f"{row.parameters:,}", f"{row.flops / 1e9:.4g}"] for row in rows]
    if all(row.seconds is not None and row.peak_mb is not None for row in rows):
        headers += ["ms", "x baseline", "peak MB", "x baseline"]
        for line, row in zip(cells, rows, strict=True):
            baseline = baselines[row.what]
            line += [f"{1e3 * (row.seconds or 0):.1f}", _ratio(row.seconds, baseline.seconds)]
            line += [f"{row.peak_mb:.0f}", _ratio(row.peak_mb, baseline.peak_mb)]
    return tabulate(cells, headers, colalign=["left"] + ["right"] * (len(headers) - 1), disable_numparse=True)


def _verdict(costs: ModelCosts) -> str:
    baseline, trained = (row for row in costs.rows if row.what == INFERENCE)
    if costs.inference_equals_baseline:
        return (
            "The inference model equals the baseline's in parameters and FLOPs: regularizers cost it nothing."
        )
    reason = f": MODEL.SEM_SEG_HEAD.AUGMENT '{costs.augment}' is a part of it." if costs.augment else "."
    return (
        f"The inference model differs from the baseline's by {trained.parameters - baseline.parameters:+,} "
        f"parameters and {(trained.flops - baseline.flops) / 1e9:+.4g} GFLOPs{reason}"
    )


def _prepared(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    # Next to no rate, so that random labels teach nothing.
    cfg.SOLVER.BASE_LR = 1e-30
    return cfg


def _build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def _exported(cfg: CfgNode) -> nn.Module:
    model = _build(cfg)
    try:
        return inference_model(model)
    except ValueError as error:
        raise ConfigError(f"This model cannot be exported: {error}") from error


def _inference_case(cfg: CfgNode, size: tuple[int, int]) -> tuple[_Case, FlopCount]:
    model = _exported(cfg)
    flops = count_inference_flops(model, _one_image(size))
    row = Row(INFERENCE, tuple(cfg.MODEL.REGULARIZERS.NAMES), _num_parameters(model), flops.total)
    return _Case(row, _inference(model, size), (make_inference, cfg.dump(), size)), flops


def _training_case(cfg: CfgNode, batch_size: int) -> _Case:
    model = _build(cfg)
    step = _training_step(cfg, model, batch_size)
    names = tuple(cfg.MODEL.REGULARIZERS.NAMES)
    row = Row(TRAINING, names, _num_parameters(model), count_training_flops(step))
    return _Case(row, step, (make_training_step, cfg.dump(), batch_size))


def _inference(model: nn.Module, size: tuple[int, int]) -> Callable[[], None]:
    inputs = _one_image(size)

    def infer() -> None:
        with torch.no_grad():
            model(inputs)

    return infer


def _training_step(cfg: CfgNode, model: nn.Module, batch_size: int) -> Callable[[], None]:
    step = TrainingStep(
        model.train(),
        build_optimizer(cfg, model),
        accum_steps=cfg.SOLVER.ACCUM_STEPS,
        autocast_dtype=amp_dtype(cfg),
        clipper=build_gradient_clipper(cfg),
    )
    batches = itertools.repeat(random_batch(cfg, batch_size))

    def run() -> None:
        step.run(batches)

    return run


def _measure(cases: Sequence[_Case], rounds: int, device: str) -> list[Row]:
    memory = [peak_memory(*case.maker, device=device) for case in cases]
    seconds = interleaved_medians(
        {str(case.row): case.action for case in cases}, rounds, device, "inference and training steps"
    )
    return [
        replace(case.row, seconds=seconds[str(case.row)], peak_mb=peak)
        for case, peak in zip(cases, memory, strict=True)
    ]


def _setting(cfg: CfgNode, size: tuple[int, int], batch_size: int, rounds: int) -> dict[str, Any]:
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    return {
        "size": list(size),
        "batch_size": batch_size,
        "crop_size": list(cfg.INPUT.CROP.SIZE),
        "rounds": rounds,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU (threads: {torch.get_num_threads()})",
    }


def _one_image(size: tuple[int, int]) -> list[dict[str, Tensor]]:
    return [{"image": _random_image(size, torch.Generator().manual_seed(0))}]


def _random_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
