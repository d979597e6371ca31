"""Mask2Former and MaskFormer of Detectron2's users from the command line, as docs/extending.md has them.

Their code is not part of this one: put a checkout on PYTHONPATH (facebookresearch/Mask2Former,
facebookresearch/MaskFormer).
"""

import importlib.util
import json
import math
import os
import re
from pathlib import Path

import pytest

from tests.engine.runs import ROOT, finish, train

pytestmark = pytest.mark.slow

CONFIGS = {"mask2former": "mask2former.yaml", "mask_former": "mask_former.yaml"}
STEPS = 40
KEYS = {
    "MODEL.DEVICE": "cpu",
    "DATASETS.TEST": "[cooccurrence_val]",
    "DATALOADER.NUM_WORKERS": 1,
    "INPUT.CROP.SIZE": "[64, 64]",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.WARMUP_ITERS": 5,
    "LOG_PERIOD": 1,
}


@pytest.fixture(params=CONFIGS)
def setting(request, tmp_path):
    """The config of the docs with its module beside it, and the environment that finds the package."""
    spec = importlib.util.find_spec(request.param)
    if spec is None:
        pytest.skip(f"{request.param} is not on the path: put a checkout of its repository on PYTHONPATH")
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for name in (CONFIGS[request.param], "plain_parts.py"):
        (text,) = re.findall(rf"```(?:yaml|py)\n(# {re.escape(name)}\n.*?)```", page, re.DOTALL)
        (tmp_path / name).write_text(text.replace("configs/_base_", str(ROOT / "configs" / "_base_")))
    checkout = str(Path(spec.origin).parents[1])
    return tmp_path / CONFIGS[request.param], {"PYTHONPATH": os.pathsep.join([str(ROOT), checkout])}


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "total_loss" in row]


def metrics(folder):
    return json.loads((folder / "evaluation" / "cooccurrence_val.json").read_text())["metrics"]


def test_it_trains_and_evaluates_from_the_command_line(setting, tmp_path):
    config, environment = setting
    output = tmp_path / "output"
    keys = [str(item) for pair in KEYS.items() for item in pair]
    finish(train(config, *keys, "OUTPUT_DIR", output, **environment), timeout=600)
    rows = losses(output)
    assert len(rows) == STEPS
    names = {name for name in rows[0] if name.startswith("loss_")}
    assert {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_car_intra_c2p"} <= names
    assert all(math.isfinite(row[name]) for row in rows for name in names)
    for name in ("total_loss", "loss_mask", "loss_car_intra_c2p"):
        first, last = (sum(row[name] for row in part) for part in (rows[:8], rows[-8:]))
        assert last < first, name
    trained = metrics(output)
    assert 0 < trained["mIoU"] <= 100

    # The run's own config is all that evaluation needs; the network without regularizers scores the same.
    saved, weights = output / "config.yaml", ("MODEL.WEIGHTS", output / "model_final.pth")
    finish(train(saved, "--eval-only", *weights, **environment))
    assert metrics(output) == trained
    plain = ("MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.REGULARIZERS.NAMES", "[]")
    finish(train(saved, "--eval-only", *weights, *plain, "OUTPUT_DIR", tmp_path / "plain", **environment))
    assert metrics(tmp_path / "plain") == trained


def test_the_baseline_trains_and_wants_the_masks(setting, tmp_path):
    config, environment = setting
    plain = ("MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.REGULARIZERS.NAMES", "[]")
    keys = [*(str(item) for pair in KEYS.items() for item in pair), "SOLVER.MAX_ITER", "2", *plain]
    output = tmp_path / "output"
    finish(train(config, *keys, "DATASETS.TEST", "[]", "OUTPUT_DIR", output, **environment))
    assert [{name for name in row if "car" in name} for row in losses(output)] == [set(), set()]
    refused = train(config, *keys, "INPUT.CLASS_MASKS", "False", "OUTPUT_DIR", output, **environment)
    assert "set INPUT.CLASS_MASKS True" in finish(refused, status=2)
