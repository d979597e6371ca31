"""Networks of a user from the command line: what IMPORTS names is trained, evaluated, shown and measured."""

import json
import re

import cv2
import pytest

from tests.data.data_helpers import write_toy
from tests.data.declarations import declare
from tests.engine.runs import ROOT, finish, free_port, start, train

pytestmark = pytest.mark.slow

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD: {NUM_CLASSES: 3, IN_FEATURES: [res4], CONVS_DIM: 8}
DATASETS: {DECLARED: [farm.yaml], TRAIN: [farm_train], TEST: [farm_val]}
INPUT: {CROP: {SIZE: [32, 32]}}
SOLVER: {MAX_ITER: 3, IMS_PER_BATCH: 2, CHECKPOINT_PERIOD: 2}
LOG_PERIOD: 1
SEED: 1
"""

HEAD = """
from detectron2.config import CfgNode
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F


def add_config(cfg):
    cfg.MODEL.MY_HEAD = CfgNode({"WIDTH": 4})


@SEM_SEG_HEADS_REGISTRY.register()
class MyHead(nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        (self.name,) = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        self.stride, width = input_shape[self.name].stride, cfg.MODEL.MY_HEAD.WIDTH
        self.mix = nn.Conv2d(input_shape[self.name].channels, width, 1)
        self.predictor = nn.Conv2d(width, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)

    def forward(self, features, targets=None):
        logits = self.predictor(F.relu(self.mix(features[self.name])))
        logits = F.interpolate(logits, scale_factor=self.stride, mode="bilinear")
        if not self.training:
            return logits, {}
        return None, {"loss_sem_seg": F.cross_entropy(logits, targets, ignore_index=self.ignore_value)}
"""

OWN = """
_BASE_: train_farm.yaml
IMPORTS: [my_networks]
MODEL: {SEM_SEG_HEAD: {NAME: MyHead}, MY_HEAD: {WIDTH: 6}, REGULARIZERS: {NAMES: [CAR]}}
"""


@pytest.fixture
def farm(tmp_path):
    """A folder with a tiny data set, the config that trains on it, and a module beside it."""
    write_toy(tmp_path / "data")
    declare(tmp_path)
    (tmp_path / "train_farm.yaml").write_text(CONFIG)
    (tmp_path / "my_networks.py").write_text(HEAD)
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "total_loss" in row]


def scores(folder):
    return (folder / "evaluation" / "farm_val.json").read_bytes()


def test_a_head_beside_the_config(farm):
    output = farm / "output"
    finish(train(farm / "own.yaml", "OUTPUT_DIR", output))
    assert len(losses(output)) == 3
    assert all(row["loss_car_intra_c2p"] > 0 for row in losses(output))
    # The run's own config is all that is needed from now on.
    saved, first = output / "config.yaml", scores(output)
    (farm / "own.yaml").unlink()
    (output / "evaluation" / "farm_val.json").unlink()
    finish(train(saved, "--eval-only", "MODEL.WEIGHTS", output / "model_final.pth"))
    assert scores(output) == first
    finish(train(saved, "--resume", "SOLVER.MAX_ITER", 4))
    assert len(losses(output)) == 4
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    pictures = farm / "pictures"
    tool = [ROOT / "tools" / "demo.py", "--config-file", saved, "--input", farm / "data" / "images"]
    finish(start(*tool, "--output", pictures, *weights))
    assert len(list(pictures.rglob("000*.png"))) >= 1
    analyze = (ROOT / "tools" / "analyze_model.py", "--only-counts", "--size", 32, 32)
    assert "The inference model equals" in finish(start(*analyze, "--config-file", saved))


def test_two_processes(farm):
    output = farm / "output"
    url = f"tcp://127.0.0.1:{free_port()}"
    (farm / "changing.py").write_text("def add_config(cfg): cfg.SOLVER.MOMENTUM = 0.8\n")
    keys = ("--num-gpus", 2, "--dist-url", url, "OUTPUT_DIR", output, "IMPORTS", f"[{farm}/changing]")
    text = finish(train(farm / "own.yaml", *keys))
    assert len(losses(output)) == 3
    change = f"SOLVER.MOMENTUM: 0.9 -> 0.8  (IMPORTS {farm}/changing)"
    assert text.count(change) == (output / "log.txt").read_text().count(change) == 1
    (farm / "my_networks.py").write_text("import a_missing_library\n")
    text = finish(train(farm / "own.yaml", "--num-gpus", 2, "OUTPUT_DIR", output), status=2)
    assert len(re.findall("^Error: ", text, re.MULTILINE)) == 1
    assert re.search(r"own.yaml: IMPORTS names .*my_networks.*failed:\n.*No module named", text, re.DOTALL)


def test_the_point_rend_of_the_docs(farm):
    page = (ROOT / "docs" / "extending.md").read_text()
    (text,) = re.findall(r"```yaml\n(# farm_point_rend.yaml\n.*?)```", page, re.DOTALL)
    config, output = farm / "farm_point_rend.yaml", farm / "output"
    config.write_text(text)
    finish(train(config, "OUTPUT_DIR", output))
    rows = losses(output)
    assert len(rows) == 3
    assert all(row["loss_sem_seg_point"] > 0 and row["loss_car_intra_c2p"] > 0 for row in rows)
    first = scores(output)
    (output / "evaluation" / "farm_val.json").unlink()
    saved, weights = output / "config.yaml", ("MODEL.WEIGHTS", output / "model_final.pth")
    finish(train(saved, "--eval-only", *weights))
    assert scores(output) == first
    pictures = farm / "pictures"
    tool = (ROOT / "tools" / "demo.py", "--config-file", saved, "--input", farm / "data" / "images")
    finish(start(*tool, "--output", pictures, *weights))
    for path in (farm / "data" / "images").iterdir():
        (label,) = [p for p in pictures.rglob(f"{path.stem}*.png") if cv2.imread(str(p), -1).ndim == 2]
        assert cv2.imread(str(label), -1).shape == (20, 30)


def test_the_same_from_the_command_line_alone(farm):
    keys = [
        *("IMPORTS", "['detectron2.projects.point_rend:add_pointrend_config']"),
        *("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
        *("MODEL.POINT_HEAD", "{NUM_CLASSES: 3, IN_FEATURES: [res2], SUBDIVISION_STEPS: 3}"),
        *(
            "MODEL.REGULARIZERS",
            "{NAMES: [PNE], PNE: {CLASSIFIER: sem_seg_head.coarse_sem_seg_head.predictor}}",
        ),
    ]
    output = farm / "output"
    finish(train(farm / "train_farm.yaml", *keys, "OUTPUT_DIR", output))
    assert all(row["loss_sem_seg_point"] > 0 for row in losses(output))
