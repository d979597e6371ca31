"""The benchmark's parts that do not need a stop watch."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import compiled as benchmark_compiled
from benchmarks import losses as benchmark_losses
from benchmarks import networks as benchmark_networks
from benchmarks import pixel_loss as benchmark_pixel_loss
from benchmarks import steps as benchmark
from benchmarks.mmsegmentation import PAIRS
from regseg_d2.apps.costs import measuring
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine.step import amp_dtype

MODELS = Path(__file__).parents[2] / "configs" / "_base_" / "models"


def test_medians_of_interleaved_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    order = []

    def action(name, durations):
        queue = iter(durations)

        def act():
            order.append(name)
            now[0] += next(queue)

        return act

    # The first round is a warm-up and does not count.
    actions = {"a": action("a", [100, 1, 5, 2]), "b": action("b", [100, 7, 7, 9])}
    assert measuring.interleaved_medians(actions, 3, "cpu", "") == {"a": 2, "b": 7}
    assert order == ["a", "b"] * 4


def test_variants_differ_in_what_they_are_named_for():
    configs = benchmark.variants(benchmark.CASES[0], "cpu")
    assert configs["baseline"].MODEL.SEM_SEG_HEAD.PROJECTION == "ConvBlock"
    assert configs["CAR's head, no losses"].MODEL.REGULARIZERS.NAMES == []
    assert configs["CAR's head, CAR"].MODEL.REGULARIZERS.NAMES == ["CAR"]
    assert configs["baseline's head, CAR"].MODEL.SEM_SEG_HEAD.PROJECTION == "ConvBlock"
    assert {cfg.MODEL.RESNETS.OUTPUT_STRIDE for cfg in configs.values()} == {8}


def test_batch_has_void_and_several_classes():
    case = benchmark.CASES[1]
    batch = benchmark.make_batch(case)
    assert len(batch) == 2
    for sample in batch:
        assert sample["sem_seg"].shape == (512, 512)
        values = torch.unique(sample["sem_seg"]).tolist()
        assert values[-1] == 255
        assert 8 < len(values) <= 13
        assert max(values[:-1]) < 150


def test_loss_tensors_have_twelve_classes_and_a_fifth_wrong():
    for case in benchmark_losses.LOSS_CASES:
        tensors = benchmark_losses.make_tensors(case, "cpu")
        for labels in tensors.targets:
            assert len(torch.unique(labels)) == 12
        labels = tensors.targets[:, ::8, ::8]
        wrong = (tensors.logits.argmax(1) != labels).double().mean().item()
        assert 0.15 < wrong < 0.22


@pytest.mark.parametrize("kind", benchmark_pixel_loss.KINDS)
def test_pixel_losses_that_are_compared_are_the_same_function(kind):
    # More pixels an image than OHEM keeps at least.
    case = benchmark_pixel_loss.PixelLossCase((2, 5, 48, 48))
    logits, targets = benchmark_pixel_loss.make_tensors(case, "cpu")
    assert targets.shape == (2, 384, 384)
    assert targets.max() == benchmark_pixel_loss.VOID
    results = []
    for make_loss in (benchmark_pixel_loss.plain_loss, benchmark_pixel_loss.package_loss):
        value = make_loss(kind, case, "cpu")(logits, targets)
        results.append((value, torch.autograd.grad(value, logits)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    # Rounding may decide on another pixel at OHEM's threshold.
    assert (results[0][1] - results[1][1]).norm() < 1e-3 * results[1][1].norm()


def test_ways_to_run_a_network_differ_in_what_they_are_named_for(tmp_path):
    for name in benchmark_networks.NAMES:
        path = PAIRS[name].write_config(MODELS, tmp_path)
        network = benchmark_networks.Network(name, nn.Identity(), path, tmp_path / "weights.pth")
        configs = {way: network.config(way) for way in benchmark_networks.WAYS}
        settings = {way: (cfg.MODEL.CHANNELS_LAST, amp_dtype(cfg)) for way, cfg in configs.items()}
        assert settings == {
            "float32": (False, None),
            "float32, channels-last": (True, None),
            "bf16": (False, torch.bfloat16),
            "bf16, channels-last": (True, torch.bfloat16),
        }
        expected = "AdamW" if "swin" in name else "SGD"
        assert {cfg.SOLVER.OPTIMIZER for cfg in configs.values()} == {expected}


def test_images_of_the_networks_tell_their_classes():
    batch = benchmark_networks.make_batch(256)
    means = []
    for sample in batch:
        assert sample["sem_seg"].max() < benchmark_networks.NUM_CLASSES
        label = sample["sem_seg"][0, 0]
        means.append((int(label), sample["image"][:, sample["sem_seg"] == label].float().mean(1)))
    again = benchmark_networks.make_batch(256)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, again, strict=True))
    other = benchmark_networks.make_batch(256, seed=1)
    assert not torch.equal(batch[0]["image"], other[0]["image"])
    for label, mean in means:
        for sample in other:
            if (sample["sem_seg"] == label).any():
                found = sample["image"][:, sample["sem_seg"] == label].float().mean(1)
                torch.testing.assert_close(found, mean, rtol=0, atol=4.0)


def test_dropout_is_off_for_a_while():
    net = nn.Sequential(nn.Dropout(0.4), nn.Sequential(nn.Dropout2d(0.1)))
    with benchmark_networks.without_dropout(net):
        assert torch.equal(net.train()(torch.ones(1, 2, 8, 8)), torch.ones(1, 2, 8, 8))
    assert (net[0].p, net[1][0].p) == (0.4, 0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["fcn_r51"], 1, 0), ConfigError, r"--networks has \['fcn_r51'\]; expected some of fcn_r50"),
        ((["fcn_r50"], 1, 15), ConfigError, "--curve is 15; expected a multiple of 10"),
        ((["fcn_r50"], 1, 0), UserError, "cannot be imported .*pip install .*mmsegmentation==1.2.2"),
    ],
)
def test_errors_of_the_networks(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)  # not there, wherever the tests run
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(error, match=message):
        benchmark_networks.run(str(tmp_path), MODELS, *arguments)


@pytest.mark.slow
def test_compiled_steps_stand_beside_eager_ones():
    model = MODELS / "deeplabv3_efficientnet_lite0_res4.yaml"
    table = benchmark_compiled.run(model, 2, (64, 64), 1, "cpu", "aot_eager")
    rows = [row.split() for row in table.splitlines() if row.startswith(("none", "CAR"))]
    assert [row[0] for row in rows] == ["none", "CAR"]
    for _, eager, compiled, ratio, first in rows:
        assert float(ratio) == pytest.approx(float(compiled) / float(eager), abs=0.01)
        assert float(first) >= 0
