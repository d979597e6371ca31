"""What the benchmarks of inference and evaluation compare is the same work; memory is what they say."""

import dataclasses

import pytest
import torch

from benchmarks import evaluation as benchmark_evaluation
from benchmarks import inference as benchmark_inference
from regseg_d2.apps.costs.measuring import peak_memory


@pytest.mark.parametrize("case", benchmark_inference.CASES, ids=lambda case: f"{case.name}, {case.size}")
def test_both_ways_give_the_same_labels(case):
    protocol = dataclasses.replace(case.protocol, crop_size=(40, 48), stride=(32, 32))
    case = dataclasses.replace(case, size=(72, 88), protocol=protocol)
    labels = [benchmark_inference.make_action(case, is_plain, 7, "cpu")() for is_plain in (True, False)]
    assert len(labels[0].unique()) > 2
    agreement = (labels[0] == labels[1]).double().mean().item()
    # Probabilities are normalised class by class, which rounds otherwise than torch's softmax.
    assert agreement > 0.999 if protocol.averages_probabilities else agreement == 1.0


@pytest.mark.parametrize("num_classes", [3, 150])
def test_both_evaluators_have_the_same_scores(num_classes):
    case = benchmark_evaluation.EvaluationCase("small", num_classes, (96, 130))
    found = benchmark_evaluation.scores(case)
    assert 0 < found["ours"]["mIoU"] < 100
    assert found["ours"]["mIoU"] == pytest.approx(found["Detectron2"]["mIoU"], rel=1e-12)
    assert found["ours"]["fwIoU"] == pytest.approx(found["Detectron2"]["fwIoU"], rel=1e-12)
    assert found["ours"]["mIoU_predicted"] <= found["ours"]["mIoU"]


def test_steps_that_are_timed_give_the_same_labels():
    case = benchmark_evaluation.EvaluationCase("small", 9, (96, 130))
    with benchmark_evaluation.registered(case) as (name, record):
        actions = benchmark_evaluation.make_actions(case, name, record)
        assert torch.equal(actions["Detectron2: argmax"](), actions["ours: argmax"]().long())
        assert (actions["Detectron2: label file"]() == actions["ours: label file"]()).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", benchmark_inference.CASES[:2], ids=lambda case: case.name)
def test_labels_take_an_eighth_of_the_memory_of_the_scores(case):
    case = dataclasses.replace(case, size=(1000, 1500))
    plain, ours = (
        peak_memory(benchmark_inference.make_action, case, is_plain, 150, "cpu", device="cpu")
        for is_plain in (True, False)
    )
    assert plain > 1000 * 1500 * 150 * 4 / 1e6
    assert ours <= plain / 8
