"""The programs of examples/ run as their first lines say, and their losses fall."""

import ast
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STEPS = 12
CAR = {"loss_car_intra_c2p", "loss_car_inter_c2c", "loss_car_inter_c2p"}
#: What each needs beside this package, and the losses that it prints.
PROGRAMS = {
    "torchvision_deeplabv3.py": ((), CAR | {"loss_contrast_seg_contrast", "loss_cross_entropy"}),
    "smp_unet.py": (("segmentation_models_pytorch",), CAR | {"loss_pne_contrast", "loss_dice"}),
    "huggingface_segformer.py": (("transformers",), CAR | {"loss_rch_metric", "loss_segformer"}),
    "lightning_module.py": (
        ("lightning",),
        {"loss_region_contrast_contrast", "loss_mdrl_local", "loss_mdrl_global", "loss_cross_entropy"},
    ),
    "detectron2_project/train.py": ((), CAR | {"loss_pne_contrast", "loss_sem_seg"}),
    "mmsegmentation_fcn.py": (
        ("mmseg", "mmengine", "mmcv"),
        CAR | {"loss_pne_contrast", "decode.loss_ce"},
    ),
}
# mmcv's compiled operations, which FCN does not use, have no wheel for every torch.
WITHOUT_OPERATIONS = """
import runpy, sys
from benchmarks.mmsegmentation import import_mmsegmentation
import_mmsegmentation()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(program, folder, *arguments):
    """Lines that a program prints, run in a folder of its own; it must leave nothing there."""
    start = ["-c", WITHOUT_OPERATIONS] if program.startswith("mmsegmentation") else []
    command = [sys.executable, *start, str(EXAMPLES / program), *arguments]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout.splitlines()


def test_all_examples_are_run():
    folder_of_one = {"detectron2_project/segmentor.py", "explore_smp.py"}
    found = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert found == PROGRAMS.keys() | folder_of_one


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_prints_falling_losses(program, tmp_path):
    needed, names = PROGRAMS[program]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    lines = run(program, tmp_path, "--steps", str(STEPS))
    matches = filter(None, (re.search(r"step (\d+): ({.*})$", line) for line in lines))
    steps = {int(match[1]): ast.literal_eval(match[2]) for match in matches}
    assert list(steps) == list(range(STEPS))
    for losses in steps.values():
        assert losses.keys() == names
        assert all(map(math.isfinite, losses.values()))
    for name in names:
        assert any(losses[name] > 0 for losses in steps.values()), name
    totals = [sum(losses.values()) for losses in steps.values()]
    # The same four batches again and again.
    assert sum(totals[-4:]) < sum(totals[:4])


def test_the_page_of_two_networks(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("plotly")
    command = [sys.executable, EXAMPLES / "explore_smp.py", "--steps", "2", "--output", tmp_path / "explored"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "explored" / "page.html").read_text(encoding="utf-8")
    assert "U-Net with CAR" in page and "dusk" in page
    assert (tmp_path / "explored" / "figures" / "relations.png").is_file()
