"""The benchmark's parts that do not need a stop watch."""

import time

import torch

from regseg_d2.analysis import benchmark_losses, measuring
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
