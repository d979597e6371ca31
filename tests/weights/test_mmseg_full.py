"""Whole networks at their published sizes: as many parameters as mmsegmentation's, and the same logits.

The logits need an environment with mmsegmentation 1.2.2: REGSEG_MMSEG_PYTHON is its interpreter.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from benchmarks.mmsegmentation import PAIRS
from regseg_d2.apps.convert_weights import convert_file
from regseg_d2.config.files import load_config
from regseg_d2.engine.trained_model import load_trained_model

REFERENCE = Path(__file__).parent / "mmseg_reference.py"
INTERPRETER = "REGSEG_MMSEG_PYTHON"
SIZE = (97, 129)

CONFIGS = Path(__file__).parents[2] / "configs" / "_base_" / "models"
RESNET_AUXILIARY = 2364691

#: Parameters of mmsegmentation's networks: backbone with head, and auxiliary head.
PARAMETERS = {
    "fcn_r50": (47133043, RESNET_AUXILIARY),
    "pspnet_r50": (46610803, RESNET_AUXILIARY),
    "deeplabv3_r50": (65748339, RESNET_AUXILIARY),
    "deeplabv3plus_r50": (41225187, RESNET_AUXILIARY),
    "fpn_r50": (28497907, 0),
    "nonlocal_r50": (47659123, RESNET_AUXILIARY),
    "ccnet_r50": (47461364, RESNET_AUXILIARY),
    "danet_r50": (47481883, RESNET_AUXILIARY),
    "encnet_r50": (33527270, RESNET_AUXILIARY),
    # The head of the coarse predictions is a part of OCRNet.
    "ocrnet_r50": (36524166, 0),
    "ocrnet_hr18": (12080036, 0),
    "fcn_hr18": (9640849, 0),
    "upernet_swin_t": (58950861, 890131),
    "segformer_b0": (3720051, 0),
}


def write_config(name, folder):
    """The config of a network, in a file, and keys beside it."""
    return str(PAIRS[name].write_config(CONFIGS, folder)), PAIRS[name].options()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_parameters(name, tmp_path):
    network, auxiliary = PARAMETERS[name]
    path, keys = write_config(name, tmp_path)
    cfg = load_config(path, [*keys, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    head = model.sem_seg_head
    coarse_is_a_part = getattr(head.context, "reads_coarse_logits", False)
    apart = 0 if coarse_is_a_part or head.auxiliary is None else count(head.auxiliary)
    assert apart == auxiliary
    assert count(model.backbone) + count(head) - apart == network


@pytest.fixture(scope="module")
def interpreter():
    path = os.environ.get(INTERPRETER)
    if not path:
        pytest.skip(f"{INTERPRETER} does not name an interpreter with mmsegmentation 1.2.2")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_logits(name, interpreter, tmp_path):
    theirs, logits, ours = tmp_path / "theirs.pth", tmp_path / "logits.pt", tmp_path / "ours.pth"
    size = [str(side) for side in SIZE]
    command = [interpreter, str(REFERENCE), name, str(theirs), str(logits), "--size", *size]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    config, keys = write_config(name, tmp_path)
    print(convert_file(str(theirs), str(ours), source="mmseg", config_file=config, opts=keys))
    expected = torch.load(logits, weights_only=True)
    for path in (ours, theirs):  # converted, and as it is
        cfg = load_config(config, [*keys, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path / "out")])
        model = load_trained_model(cfg).model
        with torch.no_grad():
            found = model.sem_seg_head.layers(model.backbone(expected["image"]))[0]
        deviation = (found - expected["logits"]).abs().max().item()
        print(f"{name}: deviation {deviation:.2e} of logits with deviation {expected['logits'].std():.3f}")
        assert found.shape == expected["logits"].shape
        assert expected["logits"].std() > 0.1
        assert deviation <= 1e-4
