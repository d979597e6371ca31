"""Memory of an evaluation that does not grow with its images."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert late <= 1.05 * early
    assert len(list(tmp_path.glob("evaluation/many/png/*.png"))) == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_the_measurement_notices_predictions_that_are_kept(tmp_path):
    early, late = memory_after_20_and_200_images(tmp_path, "json")
    assert late > 1.05 * early
