"""Bad input, given to the command line's ``main``: each is a clear error before the first step."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from regseg_d2.common.errors import CheckpointError, ConfigError, DatasetError
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from regseg_d2.engine.trainer import Trainer
from tests.data.data_helpers import registered, toy_spec, write_toy

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3]}
  SEM_SEG_HEAD: {NUM_CLASSES: 3, IN_FEATURES: [res3], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
  REGULARIZERS: {NAMES: [CAR]}
DATASETS: {TRAIN: [toy], TEST: [toy]}
INPUT: {CROP: {SIZE: [16, 16]}}
SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2}
DATALOADER: {NUM_WORKERS: 0}
"""


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def _save_label(folder, array, mode=None):
    Image.fromarray(np.asarray(array, dtype=np.uint8), mode).save(folder / "labels" / "001.png")


def missing_root(folder):
    return [], {"image_root": str(folder / "nowhere")}


def image_without_label(folder):
    (folder / "labels" / "001.png").unlink()
    return [], {}


def label_of_another_size(folder):
    _save_label(folder, np.zeros((20, 29)))
    return [], {}


def value_outside_the_map(folder):
    _save_label(folder, np.full((20, 30), 9))
    return [], {"label_map": {0: 0, 1: 1, 2: 2, 255: 255}}


def rgb_label(folder):
    _save_label(folder, np.zeros((20, 30, 3)))
    return [], {}


def truncated_image(folder):
    path = folder / "images" / "001.png"
    path.write_bytes(path.read_bytes()[:300])
    return [], {}


def empty_split(folder):
    for path in [*folder.glob("*/*.png")]:
        path.unlink()
    return [], {}


def wrong_tap(folder):
    return ["MODEL.REGULARIZERS.CAR.FEATURES", "sem_seg_head.predictr:in"], {}


def misspelt_key(folder):
    return ["MODEL.REGULARISERS.NAMES", "[CAR]"], {}


def head_of_another_size(folder):
    return ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], {}


def no_steps(folder):
    return ["SOLVER.MAX_ITER", "0"], {}


def steps_below_zero(folder):
    return ["SOLVER.MAX_ITER", "-1"], {}


def warmup_below_zero(folder):
    return ["SOLVER.WARMUP_ITERS", "-1"], {}


def warmup_that_turns_around(folder):
    return ["SOLVER.WARMUP_FACTOR", "-1.0"], {}


def rates_without_end(folder):
    return ["SOLVER.POLY_LR_POWER", "-1.0"], {}


def unknown_device(folder):
    return ["MODEL.DEVICE", "cpux"], {}


def momentum_that_grows(folder):
    return ["SOLVER.MOMENTUM", "1.5"], {}


def clipping_that_turns_around(folder):
    return ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "-1.0"], {}


def clipping_to_nothing(folder):
    return ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"], {}


def log_of_no_period(folder):
    return ["LOG_PERIOD", "0"], {}


def workers_below_zero(folder):
    return ["DATALOADER.NUM_WORKERS", "-1"], {}


def no_features(folder):
    return ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "[]"], {}


def a_feature_twice(folder):
    return ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "[res3, res3]"], {}


def no_output(folder):
    return ["OUTPUT_DIR", ""], {}


def yaml_with_a_python_tag(folder):
    text = f"SEED: !!python/object/apply:os.system ['touch {folder}/marker']\n"
    (folder / "config.yaml").write_text(CONFIG + text)
    return [], {}


def malicious_checkpoint(folder):
    torch.save({"model": Malicious(folder / "marker")}, folder / "weights.pth")
    return ["MODEL.WEIGHTS", str(folder / "weights.pth")], {}


def malicious_pickle(folder):
    (folder / "weights.pkl").write_bytes(pickle.dumps({"model": Malicious(folder / "marker")}))
    return ["MODEL.WEIGHTS", str(folder / "weights.pkl")], {}


CASES = [
    (missing_root, DatasetError, ["nowhere"]),
    (image_without_label, DatasetError, ["001"]),
    (label_of_another_size, DatasetError, ["001.png", "29", "30"]),
    (value_outside_the_map, DatasetError, ["001.png", "9"]),
    (rgb_label, DatasetError, ["001.png", "color_table"]),
    (truncated_image, DatasetError, ["001.png"]),
    (empty_split, DatasetError, ["toy"]),
    (wrong_tap, ConfigError, ["predictr", "sem_seg_head.predictor"]),
    (misspelt_key, ConfigError, ["MODEL.REGULARISERS", "MODEL.REGULARIZERS"]),
    (head_of_another_size, ConfigError, ["NUM_CLASSES", "7", "3"]),
    (no_steps, ConfigError, ["SOLVER.MAX_ITER is 0"]),
    (steps_below_zero, ConfigError, ["SOLVER.MAX_ITER is -1"]),
    (warmup_below_zero, ConfigError, ["SOLVER.WARMUP_ITERS is -1"]),
    (warmup_that_turns_around, ConfigError, ["SOLVER.WARMUP_FACTOR is -1.0"]),
    (rates_without_end, ConfigError, ["SOLVER.POLY_LR_POWER is -1.0"]),
    (unknown_device, ConfigError, ["MODEL.DEVICE is 'cpux'"]),
    (momentum_that_grows, ConfigError, ["SOLVER.MOMENTUM is 1.5", "less than 1"]),
    (clipping_that_turns_around, ConfigError, ["CLIP_VALUE is -1.0", "above 0"]),
    (clipping_to_nothing, ConfigError, ["CLIP_VALUE is 0.0", "above 0"]),
    (log_of_no_period, ConfigError, ["LOG_PERIOD is 0"]),
    (workers_below_zero, ConfigError, ["DATALOADER.NUM_WORKERS is -1"]),
    (no_features, ConfigError, ["IN_FEATURES is []", "one feature or more"]),
    (a_feature_twice, ConfigError, ["IN_FEATURES is ['res3', 'res3']", "each once"]),
    (no_output, ConfigError, ["OUTPUT_DIR is ''"]),
    (yaml_with_a_python_tag, ConfigError, ["config.yaml", "python"]),
    (malicious_checkpoint, CheckpointError, ["weights.pth", "--trust-pickle"]),
    (malicious_pickle, CheckpointError, ["weights.pkl", "--trust-pickle"]),
]


def run(folder, overrides, changes):
    opts = ["OUTPUT_DIR", str(folder / "output"), *overrides]
    args = build_argument_parser().parse_args(["--config-file", str(folder / "config.yaml"), *opts])
    with registered(toy_spec(folder, **changes)):
        return main(args)


@pytest.mark.parametrize(("break_it", "error", "named"), CASES, ids=lambda x: getattr(x, "__name__", None))
def test_clear_error_before_the_first_step(break_it, error, named, tmp_path, monkeypatch):
    write_toy(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    overrides, changes = break_it(tmp_path)
    monkeypatch.setattr(Trainer, "run_step", lambda self: pytest.fail("a step was made"))
    with pytest.raises(error) as caught:
        run(tmp_path, overrides, changes)
    for text in named:
        assert text in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_the_same_run_without_a_fault_trains(tmp_path):
    write_toy(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert 0 <= run(tmp_path, [], {})["toy"]["sem_seg"]["mIoU"] <= 100
    assert (tmp_path / "output" / "evaluation" / "toy.json").is_file()
