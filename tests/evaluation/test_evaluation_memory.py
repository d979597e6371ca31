"""Memory of an evaluation that does not grow with its images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine.runs import environment

ROOT = Path(__file__).parents[2]
# Noise, so that an evaluator that keeps its predictions cannot keep them small.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator

def resident():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1])

torch.set_num_threads(1)
folder, kinds = sys.argv[1], sys.argv[2:]
records = [{"file_name": f"{i}.jpg", "sem_seg_file_name": "label.npy"} for i in range(200)]
DatasetCatalog.register("many", lambda: records)
MetadataCatalog.get("many").set(stuff_classes=[str(i) for i in range(30)], ignore_label=255)
label = np.random.default_rng(0).integers(0, 30, (384, 384)).astype(np.int32)
evaluator = StreamingSemSegEvaluator("many", folder, label_reader=lambda path: label, predictions=kinds)
evaluator.reset()
logits = torch.randn(30, 384, 384, generator=torch.Generator().manual_seed(0))
for number, record in enumerate(records, 1):
    evaluator.process([record], [{"sem_seg": logits.roll(number, dims=0)}])
    if number in (20, 200):
        print(resident())
"""


GROWTH = 25_000  # kB; predictions that are kept take 40,000 to 80,000, as the allocator has it


def memory_after_20_and_200_images(folder, *kinds):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *kinds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in result.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_flat(tmp_path):
    early, late = memory_after_20_and_200_images(tmp_path, "png")
    assert late - early < GROWTH
    assert len(list(tmp_path.glob("evaluation/many/png/*.png"))) == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_the_measurement_notices_predictions_that_are_kept(tmp_path):
    early, late = memory_after_20_and_200_images(tmp_path, "json")
    assert late - early > GROWTH


CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD: {NUM_CLASSES: 19, IN_FEATURES: [res4], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
DATASETS: {DECLARED: [large.yaml], TRAIN: [large_val], TEST: [large_val]}
DATALOADER: {NUM_WORKERS: 0}
TEST: {MODE: slide, SLIDE: {CROP_SIZE: [1024, 1024], STRIDE: [1024, 1024]}, PREDICTIONS: [png]}
"""
EVALUATE = """
import os, resource, sys
import torch
import regseg_d2.data, regseg_d2.modeling
from regseg_d2.config.files import load_config
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from regseg_d2.segmentor.build import build_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

config, folder = sys.argv[1:]
os.makedirs(folder)
torch.save({"model": build_model(load_config(config)).state_dict()}, f"{folder}/weights.pth")
before = peak()
words = ["--config-file", config, "--eval-only", "OUTPUT_DIR", folder]
words += ["MODEL.WEIGHTS", f"{folder}/weights.pth"]
results = main(build_argument_parser().parse_args(words))
assert results["large_val"]["sem_seg"]["pACC"] > 0
print("\\nMEGABYTES", before, peak())
"""


@pytest.mark.slow
def test_an_image_of_8000_x_8000_pixels_takes_less_memory_than_its_scores(tmp_path):
    side, classes = 8000, 19
    rng = np.random.default_rng(0)
    for part, shape, values in (("images", (500, 500, 3), 256), ("labels", (500, 500), classes)):
        (tmp_path / part).mkdir()
        pixels = rng.integers(0, values, shape, dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(pixels).save(tmp_path / part / "a.png", compress_level=1)
    names = ", ".join(f"c{i}" for i in range(classes))
    splits = "{val: {images: images, labels: labels}}"
    (tmp_path / "large.yaml").write_text(f"name: large\nroot: .\nclasses: [{names}]\nsplits: {splits}\n")
    (tmp_path / "config.yaml").write_text(CONFIG)
    result = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tmp_path / "config.yaml"), str(tmp_path / "out")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    before, peak = map(int, result.stdout.split("MEGABYTES")[1].split())
    print(f"{before} MB before, {peak} MB at most")
    assert peak - before < 2500  # scores of all classes: 4864 MB
    with Image.open(tmp_path / "out" / "evaluation" / "large_val" / "png" / "a.png") as prediction:
        assert prediction.size == (side, side)
