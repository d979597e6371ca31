"""The benchmark's parts that do not need a stop watch."""

import time

import pytest
import torch

from regseg_d2.analysis import benchmark_losses, benchmark_pixel_loss, measuring
from regseg_d2.analysis import benchmark_steps as benchmark


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
    # As many pixels as are kept, and more.
    case = benchmark_pixel_loss.PixelLossCase((2, 5, 32, 32))
    logits, targets = benchmark_pixel_loss.make_tensors(case, "cpu")
    assert targets.shape == (2, 256, 256)
    assert targets.max() == benchmark_pixel_loss.VOID
    results = []
    for make_loss in (benchmark_pixel_loss.plain_loss, benchmark_pixel_loss.package_loss):
        value = make_loss(kind, case, "cpu")(logits, targets)
        results.append((value, torch.autograd.grad(value, logits)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-9)
