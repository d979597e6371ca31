"""What a training sample costs on one core, beside the pipelines of others, on generated files."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from tabulate import tabulate

from regseg_d2.data.decoders import decode_indices, decode_rgb
from regseg_d2.data.labels import LabelReader
from regseg_d2.data.mapper import TrainMapper
from regseg_d2.data.transforms import ColorJitter, RandomCrop, RandomScale
from regseg_d2.data.workers import keep_freed_memory

IGNORE, MAX_SHARE, SCALES = 255, 0.75, (0.5, 2.0)
# mmsegmentation's PhotoMetricDistortion: brightness 32 of 255, hue 18 of 180.
JITTER = ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1, probability=0.5)

Pipeline = Callable[[int], Any]


@dataclass(frozen=True)
class DataCase:
    """Files of a data set, and the crop that is trained on.

    Attributes:
        title: for the table.
        size: height and width of the images.
        suffix: of the image files.
        num_classes: classes in the labels.
        crop: height and width.
        noise: standard deviation of the pixels' noise, which decides how large the files are.
    """

    title: str
    size: tuple[int, int]
    suffix: str
    num_classes: int
    crop: tuple[int, int]
    noise: float


CASES = (
    DataCase("Cityscapes-like: PNG 2048x1024 to 512x1024", (1024, 2048), ".png", 19, (512, 1024), 0.7),
    DataCase("ADE20K-like: JPEG 683x512 to 512x512", (512, 683), ".jpg", 150, (512, 512), 4.0),
)


def make_files(case: DataCase, folder: Path, count: int) -> list[dict[str, str]]:
    """Writes images with structure at all scales and labels in large regions.

    Args:
        case: which.
        folder: where to.
        count: number of pairs.

    Returns:
        Their records.
    """
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        image, label = folder / f"image{i}{case.suffix}", folder / f"label{i}.png"
        Image.fromarray(_image(rng, case)).save(image, quality=90)
        Image.fromarray(_label(rng, case)).save(label)
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": str(label),
                "image_id": str(i),
                "dataset_name": "generated",
            }
        )
    return records


def _image(rng: np.random.Generator, case: DataCase) -> np.ndarray:
    height, width = case.size
    values = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(2, 9):
        grid = rng.standard_normal((2**octave, 2 ** (octave + 1), 3)).astype(np.float32)
        values += 0.55**octave * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    values = (values - values.mean()) / values.std() * 50 + 115
    values += case.noise * rng.standard_normal(values.shape).astype(np.float32)
    return values.clip(0, 255).astype(np.uint8)


def _label(rng: np.random.Generator, case: DataCase) -> np.ndarray:
    """Regions around random points; of each image's 20 or fewer classes, some in several regions."""
    height, width = case.size
    classes = rng.choice(case.num_classes, size=min(case.num_classes, 20), replace=False)
    best, label = np.full(case.size, -np.inf, dtype=np.float32), np.zeros(case.size, dtype=np.uint8)
    for index in classes:
        grid = rng.standard_normal((4, 8)).astype(np.float32) + rng.standard_normal()
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        label[field > best] = index
        best = np.maximum(best, field)
    label[: height // 40] = IGNORE
    return label


def our_mapper(case: DataCase, records: list[dict[str, str]]) -> Pipeline:
    """This package's mapper."""
    mapper = TrainMapper(
        label_readers={"generated": LabelReader(num_classes=case.num_classes, ignore_value=IGNORE)},
        seed=0,
        scale=RandomScale(*SCALES),
        crop=RandomCrop(case.crop, MAX_SHARE, IGNORE),
        jitter=JITTER,
        flip="horizontal",
        pad_value=[123.675, 116.28, 103.53],
    )
    return lambda number: mapper(records[number % len(records)], number)


def decoding_alone(case: DataCase, records: list[dict[str, str]]) -> Pipeline:
    """Reading and decoding both files and nothing else."""

    def decode(number: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        record = records[number % len(records)]
        image = decode_rgb(Path(record["file_name"]).read_bytes())
        return image, decode_indices(Path(record["sem_seg_file_name"]).read_bytes())

    return decode


def detectron2_mapper(case: DataCase, records: list[dict[str, str]]) -> Pipeline:
    """Detectron2's own transforms in the order in which Mask2Former's semantic mapper has them."""
    from detectron2.data import detection_utils
    from detectron2.data import transforms as T  # noqa: N812
    from detectron2.projects.point_rend import ColorAugSSDTransform

    sides = [int(case.size[0] * tenth / 10) for tenth in range(5, 21)]
    augmentations = T.AugmentationList(
        [
            T.ResizeShortestEdge(sides, 4 * max(case.size), sample_style="choice"),
            T.RandomCrop_CategoryAreaConstraint("absolute", case.crop, MAX_SHARE, IGNORE),
            ColorAugSSDTransform(img_format="RGB"),
            T.RandomFlip(),
        ]
    )

    def sample(number: int) -> dict[str, torch.Tensor]:
        record = records[number % len(records)]
        image = detection_utils.read_image(record["file_name"], format="RGB")
        label = detection_utils.read_image(record["sem_seg_file_name"]).astype("double")
        inputs = T.AugInput(image, sem_seg=label)
        augmentations(inputs)
        planes = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        target = torch.as_tensor(np.ascontiguousarray(inputs.sem_seg).astype("long"))
        padding = [0, case.crop[1] - planes.shape[2], 0, case.crop[0] - planes.shape[1]]
        return {
            "image": torch.nn.functional.pad(planes, padding, value=128),
            "sem_seg": torch.nn.functional.pad(target, padding, value=IGNORE),
        }

    return sample


def mmsegmentation_pipeline(case: DataCase, records: list[dict[str, str]]) -> Pipeline:
    """The transforms of mmsegmentation, as in its configs of Cityscapes and ADE20K."""
    from mmseg.registry import TRANSFORMS

    steps = [
        TRANSFORMS.build(step)
        for step in (
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {"type": "RandomResize", "scale": case.size[::-1], "ratio_range": SCALES, "keep_ratio": True},
            {"type": "RandomCrop", "crop_size": case.crop, "cat_max_ratio": MAX_SHARE},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"},
            {"type": "PackSegInputs"},
        )
    ]

    def sample(number: int) -> dict[str, Any]:
        record = records[number % len(records)]
        results: dict[str, Any] = {
            "img_path": record["file_name"],
            "seg_map_path": record["sem_seg_file_name"],
            "label_map": None,
            "reduce_zero_label": False,
            "seg_fields": [],
        }
        for step in steps:
            results = step(results)
        return results

    return sample


def measure(pipelines: dict[str, Pipeline], samples: int, title: str) -> dict[str, list[float]]:
    """Milliseconds of processor time of every sample; the pipelines take turns, after a warm-up.

    Args:
        pipelines: what to time, by name.
        samples: how many each makes.
        title: shown with the progress.
    """
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in track(range(-2, samples), title, transient=True):
        for name, pipeline in pipelines.items():
            start = time.process_time()
            pipeline(number % samples)
            if number >= 0:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def benchmark_case(case: DataCase, samples: int, with_mmsegmentation: bool) -> str:
    """Measures a case.

    Args:
        case: which.
        samples: how many each pipeline makes.
        with_mmsegmentation: it has been imported.

    Returns:
        A table of milliseconds and images per second, and of their ratios to decoding alone.
    """
    makers = {"regseg_d2": our_mapper, "decoding alone": decoding_alone}
    if with_mmsegmentation:
        makers["mmsegmentation"] = mmsegmentation_pipeline
    makers["Detectron2, as Mask2Former"] = detectron2_mapper
    with tempfile.TemporaryDirectory() as folder:
        records = make_files(case, Path(folder), 4)
        sizes = [Path(records[0][key]).stat().st_size / 1e3 for key in ("file_name", "sem_seg_file_name")]
        pipelines = {name: make(case, records) for name, make in makers.items()}
        times = measure(pipelines, samples, case.title)
    floor = statistics.fmean(times["decoding alone"])
    rows = [
        [
            name,
            f"{statistics.median(values):.1f}",
            f"{statistics.fmean(values):.1f}",
            f"{1e3 / statistics.fmean(values):.1f}",
            f"{statistics.fmean(values) / floor:.2f}",
        ]
        for name, values in times.items()
    ]
    headers = ["pipeline", "median ms", "mean ms", "images/s", "mean / decoding"]
    title = f"{case.title} (image {sizes[0]:.0f} kB, label {sizes[1]:.0f} kB)"
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def run(samples: int, mmsegmentation: str) -> None:
    """Prints a table for each case: scale, crop with the class cap, flip and colour jitter on one core.

    Args:
        samples: how many each pipeline makes; scales differ, and so do their times.
        mmsegmentation: folder of its packages; "" where this environment has it, or to leave it out.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keeps = keep_freed_memory()
    with_mmsegmentation = _import_mmsegmentation(mmsegmentation)
    np.random.seed(0)  # the others' randomness
    memory = "all pipelines keep freed memory, as our workers do" if keeps else "freed memory goes back"
    print(f"one core, processor time of {samples} samples in turns; {memory}; OpenCV {cv2.__version__}")
    for case in CASES:
        print("\n" + benchmark_case(case, samples, with_mmsegmentation), flush=True)


def _import_mmsegmentation(folder: str) -> bool:
    from benchmarks.mmsegmentation import import_mmsegmentation

    if folder:
        sys.path.append(folder)
    try:
        import_mmsegmentation()
    except ImportError:
        if folder:
            raise
        print("mmsegmentation is not installed and left out (--mmsegmentation FOLDER)")
        return False
    return True
