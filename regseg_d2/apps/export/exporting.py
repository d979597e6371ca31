"""What ``tools/export.py`` does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from regseg_d2.apps.costs.measuring import interleaved_medians
from regseg_d2.apps.export.agreement import (
    TOLERANCE,
    Shape,
    compare,
    describe,
    made_up_images,
    require_agreement,
    table,
)
from regseg_d2.apps.export.description import describe_network, without_normalization
from regseg_d2.apps.export.folded import FOLDED_SUFFIX, folded_config, write_folded
from regseg_d2.apps.export.formats import FORMATS, Runner
from regseg_d2.apps.export.network import HEAD_SCORES, LABELS, OUTPUTS, SCORES, ExportedNetwork
from regseg_d2.apps.export.quantization import (
    FileSegmentor,
    calibration_images,
    calibration_set,
    mean_ious,
    quantize,
)
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.files import atomic_writer, write_text
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.config.files import format_config, load_config
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.segmentor.export import inference_model

#: The format that is a checkpoint of this package.
CHECKPOINT = "checkpoint"
FORMAT_NAMES = (*FORMATS, CHECKPOINT)


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        config_file: config of the trained model.
        output: the file to write.
        format: one of ``FORMAT_NAMES``.
        opts: changes to the config, with MODEL.WEIGHTS.
        predicts: what the network puts out, one of ``OUTPUTS``.
        size: the only height and width that it shall take; None is any.
        normalizes: whether normalization is inside.
        check_sizes: heights and widths that the file is checked at; empty is three around the training crop.
        tolerance: largest difference that is taken for rounding, as a share of the largest score.
        int8: write an int8 file beside the one of ONNX.
        calibration_set: data set for it; "" is the first of DATASETS.TRAIN.
        calibration_images: how many of its images.
        benchmark_rounds: rounds of measuring latency; 0 measures none.
    """

    config_file: str
    output: Path
    format: str
    opts: Sequence[str] = ()
    predicts: str = LABELS
    size: tuple[int, int] | None = None
    normalizes: bool = True
    check_sizes: Sequence[tuple[int, int]] = ()
    tolerance: float = TOLERANCE
    int8: bool = False
    calibration_set: str = ""
    calibration_images: int = 32
    benchmark_rounds: int = 0
    targets: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Checks what can be checked without the network.

        Raises:
            UserError: a value that cannot be used, a file that is there, or a package that is not.
        """
        _check_choice("--format", self.format, FORMAT_NAMES)
        _check_choice("--predicts", self.predicts, OUTPUTS)
        if self.format != CHECKPOINT:
            FORMATS[self.format].require()
        suffix = FOLDED_SUFFIX if self.format == CHECKPOINT else FORMATS[self.format].suffix
        if self.output.suffix != suffix:
            raise ConfigError(
                f"--output is '{self.output}'; a file of --format {self.format} ends with {suffix}."
            )
        if self.int8 and self.format != "onnx":
            raise ConfigError(f"--int8 writes ONNX, and --format is {self.format}: take onnx.")
        if self.format == CHECKPOINT and not self.normalizes:
            raise ConfigError("--without-normalization is not for --format checkpoint: leave it out.")
        if self.calibration_images < 1:
            raise ConfigError(f"--calibration-images is {self.calibration_images}; expected 1 or more.")
        if not self.tolerance > 0:
            raise ConfigError(f"--tolerance is {self.tolerance}; expected a number above 0.")
        if min((1, *(self.size or ()), *(side for pair in self.check_sizes for side in pair))) < 1:
            raise ConfigError("--size and --check-sizes take heights and widths of 1 or more.")
        beside = [self.output.with_suffix(".yaml")] if self.format == CHECKPOINT else []
        beside += [self.output.with_suffix(".int8.onnx")] if self.int8 else []
        object.__setattr__(self, "targets", (self.output, *beside))
        for target in self.targets:
            if target.exists():
                raise ConfigError(f"'{target}' is there already: give --output another name, or remove it.")


@dataclass(frozen=True)
class _Subject:
    """The network that is exported, and what it has to agree with."""

    cfg: CfgNode
    network: ExportedNetwork
    reference: ExportedNetwork
    metadata: str
    shapes: Sequence[Shape]


def export_network(request: Request, *, say: Callable[[str], None] = print) -> None:
    """Exports a network, checks the file against it, and writes nothing where they do not agree.

    Args:
        request: what to export.
        say: takes lines for people.

    Raises:
        UserError: something cannot be used, torch cannot export the network, or the file does not agree.
    """
    subject = _load(request)
    title = request.format if request.format == CHECKPOINT else FORMATS[request.format].title
    with _staged(request.targets) as files:
        run = _write(request, subject, files)
        agreements = compare(run, subject.reference, request.predicts, subject.shapes, title)
        say(f"{title} beside torch, {request.predicts}:\n{table(agreements)}")
        require_agreement(agreements, request.tolerance, title)
        runners: dict[str, Runner] = {"torch": subject.network, title: run}
        if request.int8:
            runners["int8"] = _write_int8(request, subject, files, run, say)
        if request.benchmark_rounds:
            say(_latencies(runners, subject.shapes[0], request.benchmark_rounds))
        sizes = [
            f"'{target}' ({file.stat().st_size / 1e6:.2f} MB)"
            for file, target in zip(files, request.targets, strict=True)
        ]
    say(f"Wrote {' and '.join(sizes)}")


def _load(request: Request) -> _Subject:
    import regseg_d2.segmentor  # noqa: F401  registers networks

    cfg = load_config(request.config_file, list(request.opts)).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    register_declared(cfg.DATASETS.DECLARED)
    if request.int8:
        calibration_set(cfg, request.calibration_set)
    trained: Any = load_trained_model(cfg).model
    try:
        segmentor: Any = inference_model(trained, fold="all" if request.format == CHECKPOINT else "possible")
    except ValueError as error:
        raise ConfigError(f"The network cannot be folded: {error}.") from error
    if not request.normalizes:
        trained, segmentor = without_normalization(trained), without_normalization(segmentor)
    pads = cfg.TEST.PADDING == "stride"
    network = ExportedNetwork(segmentor, request.predicts, pads=pads, size=request.size).eval()
    scores = HEAD_SCORES if request.predicts == HEAD_SCORES else SCORES
    description = describe_network(
        cfg, segmentor, request.predicts, size=request.size, normalizes=request.normalizes
    )
    return _Subject(
        cfg,
        network.requires_grad_(False),
        ExportedNetwork(trained, scores, pads=pads, size=request.size).eval(),
        json.dumps(description, indent=2),
        _shapes(request, tuple(cfg.INPUT.CROP.SIZE)),
    )


def _shapes(request: Request, crop: tuple[int, int]) -> list[Shape]:
    """What the file is checked on: other numbers of images, and other sizes where it takes any."""
    sizes = list(request.check_sizes)
    if request.size is not None:
        sizes = [request.size] * 3
    elif not sizes:
        height, width = crop
        sizes = [crop, (height * 3 // 4 + 1, width * 3 // 4 + 3), (height, width * 5 // 4 + 1)]
    return [(1 + index % 2, *size) for index, size in enumerate(sizes)]


def _write(request: Request, subject: _Subject, files: Sequence[Path]) -> Runner:
    """Writes the file, and loads it as its user would."""
    if request.format == CHECKPOINT:
        return _write_checkpoint(request, subject, *files)
    file_format = FORMATS[request.format]
    _, height, width = subject.shapes[0]
    # Sizes that differ from each other and from the first that is checked, where any is taken.
    example = made_up_images((2, height, width if request.size else width + 32), seed=0)
    file_format.write(subject.network, example, files[0], subject.metadata, any_size=request.size is None)
    return file_format.load(files[0])


def _write_checkpoint(request: Request, subject: _Subject, weights: Path, config: Path) -> Runner:
    segmentor = subject.network.segmentor
    cfg = folded_config(subject.cfg, segmentor, request.output)
    write_folded(segmentor, cfg, weights, subject.metadata)
    write_text(config, format_config(cfg))
    again = load_trained_model(load_config(str(config), ["MODEL.WEIGHTS", str(weights)])).model
    return ExportedNetwork(again, request.predicts, pads=subject.network.pads, size=request.size).eval()


def _write_int8(
    request: Request,
    subject: _Subject,
    files: Sequence[Path],
    run: Runner,
    say: Callable[[str], None],
) -> Runner:
    """Writes the int8 file, and says what it costs."""
    cfg, network = subject.cfg, subject.network
    dataset = calibration_set(cfg, request.calibration_set)
    images = calibration_images(cfg, dataset, request.calibration_images, network)
    quantize(files[0], files[1], images, subject.metadata)
    run_int8 = FORMATS["onnx"].load(files[1])
    agreements = compare(run_int8, subject.reference, request.predicts, subject.shapes, "int8")
    say(f"int8, calibrated on {len(images)} images of {dataset}, beside torch:\n{table(agreements)}")
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    scores = {
        name: mean_ious(cfg, FileSegmentor(each, network, classes))
        for name, each in (("float32", run), ("int8", run_int8))
    }
    rows = [
        (name, f"{file.stat().st_size / 1e6:.2f}", *(f"{score:.2f}" for score in scores[name].values()))
        for name, file in zip(scores, files, strict=True)
    ]
    headers = ("", "MB", *(f"mIoU {name}" for name in cfg.DATASETS.TEST))
    say(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    return run_int8


def _latencies(runners: dict[str, Runner], shape: Shape, rounds: int) -> str:
    images = made_up_images((1, *shape[1:]), seed=0)

    def action(run: Runner) -> Callable[[], None]:
        def run_once() -> None:
            with torch.no_grad():
                run(images)

        return run_once

    medians = interleaved_medians(
        {name: action(run) for name, run in runners.items()}, rounds, "cpu", "measuring"
    )
    rows = [(name, f"{seconds * 1e3:.1f}") for name, seconds in medians.items()]
    heading = (
        f"Latency, images {describe((1, *shape[1:]))}, {torch.get_num_threads()} thread(s), medians of "
        f"{rounds} interleaved rounds:"
    )
    return f"{heading}\n{tabulate(rows, headers=('', 'ms'), tablefmt='simple', disable_numparse=True)}"


@contextmanager
def _staged(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields files of another folder to write; they go to ``targets`` if the block ends without an error."""
    with tempfile.TemporaryDirectory(prefix="regseg_d2_export_") as folder:
        files = [Path(folder, target.name) for target in targets]
        yield files
        for file, target in zip(files, targets, strict=True):
            with open(file, "rb") as source, atomic_writer(target, "wb") as copy:
                copyfileobj(source, copy)


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(
            f"{option} is {value!r}{did_you_mean(value, known)}; expected one of {', '.join(known)}."
        )
