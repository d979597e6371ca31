"""Costs of a network: counts by hand, the promise that regularizers cost an inference nothing, the tool."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regseg_d2.apps.costs import model_costs
from regseg_d2.apps.costs.flops import count_inference_flops, count_training_flops
from regseg_d2.apps.costs.model_costs import analyze, as_data, random_batch, render
from regseg_d2.common.errors import ConfigError
from tests.helpers import small_cfg

ROOT = Path(__file__).parents[3]
CONFIG = """
MODEL:
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3, res4]}
  SEM_SEG_HEAD:
    {NUM_CLASSES: 5, IN_FEATURES: [res4], CONTEXT: FCN, CONTEXT_CHANNELS: 16, CONVS_DIM: 16}
  REGULARIZERS: {NAMES: [CAR, PNE]}
INPUT: {CROP: {SIZE: [64, 96]}}
"""


class Tiny(nn.Module):
    """One of each kind of operation, on tokens of an image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        x = self.norm(self.depthwise(self.conv(x))).relu()
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        tokens = F.gelu(F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None]))
        # Broadcast over the batch: the first factor has no batch of its own.
        return self.mix @ tokens[:, 0].transpose(1, 2)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_multiply_adds_of_a_tiny_network_by_hand(batch_size):
    model = Tiny().eval()
    count = count_inference_flops(model, torch.rand(batch_size, 3, 5, 7))
    pixels = batch_size * 5 * 7
    assert count.by_operation == {
        "conv": pixels * 4 * 3 * 9 + pixels * 4 * 9,
        "batch_norm": pixels * 4 * 2,
        "scaled_dot_product_attention": pixels * (5 * 7) * (4 + 4),
        "matmul": pixels * 4 * 2,
    }
    assert count.total == sum(count.by_operation.values())
    assert count.uncounted == {"gelu": 1}


# Forward 2 products; backward 4, for which the fused kernel makes the weights of attention once more.
@pytest.mark.parametrize(
    ("kernel", "attention_products"), [(SDPBackend.MATH, 6), (SDPBackend.FLASH_ATTENTION, 7)]
)
def test_a_training_step_has_two_products_backward_for_one_forward(kernel, attention_products):
    model = Tiny()
    x = torch.rand(2, 3, 5, 7, requires_grad=True)

    def step():
        with sdpa_kernel(kernel):
            model(x).sum().backward()

    pixels = 2 * 5 * 7
    forward = pixels * 4 * 3 * 9 + pixels * 4 * 9 + pixels * 4 * 2
    attention = pixels * (5 * 7) * 4
    assert count_training_flops(step) == 3 * forward + attention_products * attention


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_count_their_input(groups):
    conv = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups, bias=False)
    x = torch.rand(2, 4, 5, 7, requires_grad=True)
    forward = 2 * 35 * 4 * (6 // groups) * 4
    assert count_inference_flops(conv, x).by_operation == {"conv": forward}
    assert count_training_flops(lambda: conv(x).sum().backward()) == 3 * forward


def test_an_input_without_gradient_costs_one_product_less():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.rand(2, 3, 5, 7)
    assert count_training_flops(lambda: conv(x).sum().backward()) == 2 * (2 * 35 * 4 * 3 * 9)


@pytest.fixture
def without_stop_watch(monkeypatch):
    """Time and memory by the number of the row; each action runs once."""

    def run_once(actions, rounds, device, title):
        assert rounds == 3
        for action in actions.values():
            action()
        return {name: 0.001 * (index + 1) for index, name in enumerate(actions)}

    def make(maker, *args, device):
        maker(*args)()
        made.append(maker.__name__)
        return 100.0 * len(made)

    made = []
    monkeypatch.setattr(model_costs, "interleaved_medians", run_once)
    monkeypatch.setattr(model_costs, "peak_memory", make)
    return made


def test_regularizers_and_their_linear_convolution_cost_an_inference_nothing(without_stop_watch):
    cfg = small_cfg("FCN-linear", ["CAR", "PNE"])
    before = cfg.dump()
    costs = analyze(cfg, size=(70, 50), batch_size=2, rounds=3)
    assert cfg.dump() == before
    inference, trained, step, regularized = costs.rows
    assert str(inference) == "inference, baseline"
    assert str(trained) == "inference, trained with CAR, PNE"
    assert str(step) == "training step, baseline"
    assert str(regularized) == "training step, with CAR, PNE"
    assert costs.inference_equals_baseline
    assert (inference.parameters, inference.flops) == (trained.parameters, trained.flops)
    # PNE has a projection of its own; its and CAR's losses are products.
    assert regularized.parameters > step.parameters > inference.parameters
    assert regularized.flops > step.flops > 0
    assert [row.seconds for row in costs.rows] == [0.001, 0.002, 0.003, 0.004]
    assert [row.peak_mb for row in costs.rows] == [100.0, 200.0, 300.0, 400.0]
    assert without_stop_watch == ["make_inference"] * 2 + ["make_training_step"] * 2


def test_the_table_and_the_data_say_it_all(without_stop_watch):
    costs = analyze(small_cfg("FCN", ["CAR"]), size=(64, 64), batch_size=1, rounds=3)
    text = render(costs)
    lines = text.splitlines()
    assert "inference of 1 image of 64x64, training step of 1 crops of 64x64" in lines[0]
    (row,) = (line.split() for line in lines if line.startswith("training step, with CAR"))
    # ... 4 ms, 4/3 of the baseline's, 400 MB, 4/3 of the baseline's.
    assert row[-4:] == ["4.0", "1.333", "400", "1.333"]
    assert f"{costs.rows[3].parameters:,}" in row
    assert "equals the baseline's in parameters and FLOPs" in text
    # Residual connections are in no count, and are said to be.
    assert "add (" in text
    data = json.loads(json.dumps(as_data(costs), allow_nan=False))
    assert data["inference_equals_baseline"] is True
    assert data["rows"][3]["regularizers"] == ["CAR"]
    assert data["rows"][3]["seconds"] == 0.004
    assert data["uncounted"] == costs.uncounted


def test_parameters_are_those_of_the_layers():
    costs = analyze(small_cfg("FCN"), size=(64, 64), batch_size=1, rounds=1, only_counts=True)
    inference, step = costs.rows
    backbone = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3))
    # Two 3x3 blocks of 16 channels on the 256 of res4, and 5 classes.
    head = (256 * 16 * 9 + 2 * 16) + (16 * 16 * 9 + 2 * 16) + (16 * 5 + 5)
    assert inference.parameters == step.parameters == sum(p.numel() for p in backbone.parameters()) + head
    assert inference.seconds is inference.peak_mb is None
    assert costs.inference_equals_baseline is None
    text = render(costs)
    assert "baseline's" not in text
    assert " ms" not in text


def test_a_stage_that_stays_is_said_to_stay():
    cfg = small_cfg("FCN", ["MDRL"], SEM_SEG_HEAD__AUGMENT="MDRL")
    costs = analyze(cfg, size=(64, 64), batch_size=1, rounds=1, only_counts=True)
    assert costs.inference_equals_baseline is False
    baseline, trained = costs.rows[:2]
    assert trained.parameters > baseline.parameters
    text = render(costs)
    assert f"differs from the baseline's by +{trained.parameters - baseline.parameters:,} parameters" in text
    assert "MODEL.SEM_SEG_HEAD.AUGMENT 'MDRL' is a part of it" in text


def test_batches_have_void_pixels_and_the_crops_size():
    cfg = small_cfg("FCN", INPUT__CROP__SIZE=[70, 50])
    batch = random_batch(cfg, 3)
    assert len(batch) == 3
    for sample in batch:
        assert sample["image"].shape == (3, 70, 50)
        assert sample["sem_seg"].shape == (70, 50)
        assert sample["sem_seg"][0, 0] == 255
        assert sample["sem_seg"][8:].max() < 5
        assert "instances" not in sample
    cfg.INPUT.CLASS_MASKS = True
    for sample, plain in zip(random_batch(cfg, 3), batch, strict=True):
        instances = sample["instances"]
        labels = torch.full((70, 50), 255)
        for mask, index in zip(instances.gt_masks, instances.gt_classes, strict=True):
            labels[mask] = index
        assert torch.equal(labels, plain["sem_seg"])


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match="PROJECTION_KERNEL_SIZE"):
        cfg = small_cfg("FCN-linear", SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=3)
        analyze(cfg, size=(64, 64), batch_size=1, rounds=1, only_counts=True)
    with pytest.raises(ConfigError, match=r"size is \(0, 64\).*expected numbers of 1 or more"):
        analyze(small_cfg("FCN"), size=(0, 64), batch_size=1, rounds=1)


def run_tool(tmp_path, *arguments):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "analyze_model.py"), "--config-file", str(config), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_the_tool_counts(tmp_path):
    arguments = ["--only-counts", "--json", "costs.json", "MODEL.REGULARIZERS.NAMES", "[CAR]"]
    result = run_tool(tmp_path, "--size", "40", "72", *arguments)
    assert result.returncode == 0, result.stderr
    assert "inference of 1 image of 40x72, training step of 2 crops of 64x96" in result.stdout
    assert "inference, trained with CAR" in result.stdout
    data = json.loads((tmp_path / "costs.json").read_text())
    assert data["overrides"] == ["MODEL.REGULARIZERS.NAMES", "[CAR]"]
    assert data["inference_equals_baseline"] is True
    assert data["setting"]["size"] == [40, 72]


def test_the_tool_prints_a_users_error_alone(tmp_path):
    result = run_tool(tmp_path, "SOLVER.NO_SUCH_KEY", "1")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert "SOLVER.NO_SUCH_KEY" in result.stderr


@pytest.mark.slow
def test_the_tool_measures(tmp_path):
    result = run_tool(tmp_path, "--rounds", "2", "--batch", "1", "--device", "cpu", "--json", "costs.json")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [row["regularizers"] for row in rows] == [[], ["CAR", "PNE"]] * 2
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows)
    # A training step keeps what an inference forgets.
    assert rows[2]["peak_mb"] > rows[0]["peak_mb"]
