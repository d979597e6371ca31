"""The command line as a user meets it: train, kill -9, resume, evaluate, with real data and all methods."""

import os
import signal

import pytest
import torch

from regseg_d2.config.files import load_config
from regseg_d2.weights.reading import load_file
from tests.engine.runs import finish, lines_of, same_end, train, wait_for_steps

pytestmark = pytest.mark.slow

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD:
    {NUM_CLASSES: 10, IN_FEATURES: [res4], CONTEXT: FCN, CONTEXT_CHANNELS: 16, CONVS_DIM: 16}
  REGULARIZERS:
    NAMES: [CAR, ContrastSeg, MDRL, PNE, RCH, RegionContrast]
    CAR: {CENTERS: ema}
    ContrastSeg: {MEMORY: True, MEMORY_SIZE: 20, MAX_VIEWS: 4}
    RegionContrast: {BANK_SIZE: 20}
DATASETS: {TRAIN: [cooccurrence_train], TEST: []}
INPUT: {CROP: {SIZE: [64, 64]}, COLOR_JITTER: {BRIGHTNESS: 0.2}}
SOLVER: {MAX_ITER: 30, IMS_PER_BATCH: 4, BASE_LR: 0.01, CHECKPOINT_PERIOD: 4}
LOG_PERIOD: 1
SEED: 3
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


def run(config, *arguments):
    return finish(train(config, *arguments), timeout=500)


def kill_after(config, steps, folder, *arguments):
    """Starts a run and kills it, with its workers, after so many steps."""
    process = train(config, *arguments, "OUTPUT_DIR", folder)
    wait_for_steps(process, folder, steps)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_and_resume_is_the_same_run(config, tmp_path, workers):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    keys = ("DATALOADER.NUM_WORKERS", workers)
    run(config, *keys, "OUTPUT_DIR", straight)
    kill_after(config, 11, killed, *keys)
    assert not (killed / "model_final.pth").exists()
    output = run(config, "--resume", *keys, "OUTPUT_DIR", killed)
    assert "Training from step 0" not in output
    assert any(key.startswith("regularizers.") for key in load_file(str(killed / "model_final.pth"))["model"])
    assert same_end(straight, killed)
    assert len(lines_of(straight)) == len(lines_of(killed)) == 30


def test_two_processes_are_killed_and_resumed_too(config, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    keys = ("DATALOADER.NUM_WORKERS", 0)
    run(config, "--num-gpus", 2, *keys, "OUTPUT_DIR", straight)
    kill_after(config, 11, killed, "--num-gpus", 2, *keys)
    run(config, "--num-gpus", 2, "--resume", *keys, "OUTPUT_DIR", killed)
    assert same_end(straight, killed)


def test_evaluation_of_the_final_checkpoint_is_the_end_of_training_byte_for_byte(config, tmp_path):
    folder = tmp_path / "run"
    keys = ("SOLVER.MAX_ITER", 3, "DATASETS.TEST", "[cooccurrence_val]", "OUTPUT_DIR", folder)
    run(config, *keys)
    file = folder / "evaluation" / "cooccurrence_val.json"
    after_training, saved_config = file.read_bytes(), (folder / "config.yaml").read_bytes()
    for arguments in (["--resume"], ["MODEL.WEIGHTS", folder / "model_final.pth"]):
        file.unlink()
        flags = [a for a in arguments if a == "--resume"]
        run(config, "--eval-only", *flags, *keys, *(a for a in arguments if a != "--resume"))
        assert file.read_bytes() == after_training
    assert (folder / "config.yaml").read_bytes() == saved_config
    assert load_config(str(folder / "config.yaml")).MODEL.REGULARIZERS.CAR.CENTERS == "ema"
    # The baseline's network evaluates the same checkpoint, without its regularizers.
    run(config, "--eval-only", "--resume", *keys, "MODEL.REGULARIZERS.NAMES", "[]")
    assert file.read_bytes() == after_training
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 2
