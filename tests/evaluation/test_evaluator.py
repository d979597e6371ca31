"""The streaming evaluator: its counts, its JSON, its errors."""

import json
import logging
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.drawing.sheets import SheetRow, prediction_sheet
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.evaluation.metrics import METRIC
from tests.evaluation.test_metrics import reference

CLASSES = ["sky", "road", "car", "boat"]


@pytest.fixture
def dataset(tmp_path):
    """Three labels of different sizes with void; and logits whose argmax is known."""
    rng = np.random.default_rng(0)
    records, outputs, labels = [], [], []
    for i, size in enumerate([(5, 7), (8, 4), (6, 6)]):
        label = rng.choice([0, 1, 2, 255], size=size).astype(np.int32)
        path = tmp_path / f"{i}.npy"
        np.save(path, label)
        records.append({"file_name": f"{i}.png", "sem_seg_file_name": str(path)})
        outputs.append({"sem_seg": torch.from_numpy(rng.normal(size=(4, *size)).astype(np.float32))})
        labels.append(label)
    name = "evaluator_test"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    return name, records, outputs, labels


def run(dataset, folder, **options):
    name, records, outputs, _ = dataset
    evaluator = StreamingSemSegEvaluator(name, str(folder), label_reader=np.load, **options)
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        image = torch.zeros(3, *output["sem_seg"].shape[1:], dtype=torch.uint8)
        evaluator.process([{**record, "image": image}], [output])
    return evaluator, evaluator.evaluate()


def test_the_metric_of_the_docs_is_counted_printed_and_saved(dataset, tmp_path, caplog):
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    exec(textwrap.dedent(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]), {})
    try:
        with caplog.at_level(logging.INFO):
            _, results = run(dataset, tmp_path, metrics=["SkyAccuracy"])
    finally:
        del METRIC._obj_map["SkyAccuracy"]
    score = results["sem_seg"]["accuracy of sky"]
    assert score == pytest.approx(results["sem_seg"]["ACC-sky"]) and 0 < score < 100
    assert f"accuracy of sky {score:.4f}" in caplog.text
    report = json.loads((tmp_path / "evaluation" / "evaluator_test.json").read_text())
    assert report["metrics"]["accuracy of sky"] == pytest.approx(score)
    with pytest.raises(ConfigError, match="TEST.METRICS: unknown name 'SkyAccuracy'"):
        run(dataset, tmp_path, metrics=["SkyAccuracy"])


def test_scores_over_all_pixels_of_the_data_set(dataset, tmp_path):
    _, results = run(dataset, tmp_path)
    *_, outputs, labels = dataset
    predicted = np.concatenate([o["sem_seg"].argmax(0).numpy().ravel() for o in outputs])
    expected = reference(predicted, np.concatenate([label.ravel() for label in labels]), 4)
    scores = results["sem_seg"]
    assert scores["mIoU"] == pytest.approx(expected["miou"], rel=1e-12)
    assert scores["mIoU_predicted"] == pytest.approx(expected["miou_predicted"], rel=1e-12)
    assert scores["IoU-car"] == pytest.approx(expected["iou"][2], rel=1e-12)
    assert scores["ACC-road"] == pytest.approx(expected["acc"][1], rel=1e-12)
    assert scores["mIoU_predicted"] < scores["mIoU"]  # boat is absent and was predicted


def test_json_holds_the_scores_and_is_the_same_bytes_every_time(dataset, tmp_path):
    provenance = {"weights_sha256": "abc", "completed_steps": 3}
    _, results = run(dataset, tmp_path / "a", provenance=provenance)
    run(dataset, tmp_path / "b", provenance=provenance)
    first, second = ((tmp_path / n / "evaluation" / "evaluator_test.json").read_bytes() for n in "ab")
    assert first == second
    report = json.loads(first)
    assert report["metrics"]["mIoU"] == results["sem_seg"]["mIoU"]
    assert report["model"] == provenance
    assert (report["num_images"], report["dataset"], report["ignore_label"]) == (3, "evaluator_test", 255)
    assert report["protocol"] == "whole image, one scale, no flip"
    assert report["inference"]["padding"] == "stride"
    assert [item["name"] for item in report["classes"]] == CLASSES
    assert report["classes"][3]["IoU"] is None
    assert report["classes"][3]["pixels"] == 0
    labels = np.concatenate([label.ravel() for label in dataset[3]])
    assert sum(item["pixels"] for item in report["classes"]) == int((labels != 255).sum())
    assert sum(item["predicted_pixels"] for item in report["classes"]) == int((labels != 255).sum())
    assert report["warnings"][0].startswith("Not in the ground truth, and left out of mIoU: boat.")


def test_warnings_and_table_are_logged(dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(dataset, tmp_path)
    assert "mIoU_predicted" in caplog.text
    assert any(r.levelname == "WARNING" and "boat" in r.getMessage() for r in caplog.records)
    assert "predicted pixels" in caplog.text


def test_nothing_of_an_image_is_kept(dataset, tmp_path):
    evaluator, _ = run(dataset, tmp_path)
    assert evaluator._confusion.shape == (4, 4)
    assert evaluator._confusion.dtype == torch.int64
    assert evaluator._predictions == []
    assert evaluator.panels == []
    assert not list((tmp_path / "evaluation").glob("*_predictions.json"))


def test_predictions_on_request(dataset, tmp_path):
    from pycocotools import mask

    run(dataset, tmp_path, predictions=["json"])
    entries = json.loads((tmp_path / "evaluation" / "evaluator_test_predictions.json").read_text())
    first = [entry for entry in entries if entry["file_name"] == "0.png"]
    drawn = np.full((5, 7), -1)
    for entry in first:
        drawn[mask.decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
    assert np.array_equal(drawn, dataset[2][0]["sem_seg"].argmax(0).numpy())


def test_labels_count_as_the_scores_that_they_come_from(dataset, tmp_path):
    from_scores, _ = run(dataset, tmp_path)
    name, records, outputs, _ = dataset
    evaluator = StreamingSemSegEvaluator(name, label_reader=np.load)
    for record, output in zip(records, outputs, strict=True):
        labels = output["sem_seg"].argmax(0).to(torch.uint8)
        evaluator.process([record], [{"sem_seg_labels": labels, "num_classes": 4}])
    assert torch.equal(evaluator._confusion, from_scores._confusion)
    with pytest.raises(ConfigError, match="puts out 5 classes and 'evaluator_test' has 4: set MODEL"):
        evaluator.process(records[:1], [{"sem_seg_labels": labels, "num_classes": 5}])


def test_index_files_are_written_for_every_image(dataset, tmp_path):
    run(dataset, tmp_path, predictions=["png"])
    folder = tmp_path / "evaluation" / "evaluator_test" / "png"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    for i, output in enumerate(dataset[2]):
        written = np.asarray(Image.open(folder / f"{i}.png"))
        assert np.array_equal(written, output["sem_seg"].argmax(0).numpy())


def test_unknown_kind_of_predictions(dataset, tmp_path):
    with pytest.raises(ConfigError, match='has "gif"; expected some of png, cityscapes, ade20k, json'):
        StreamingSemSegEvaluator(dataset[0], str(tmp_path), label_reader=np.load, predictions=["gif"])


def test_panels_show_image_label_and_prediction_with_names_and_classes(dataset, tmp_path):
    evaluator, _ = run(dataset, tmp_path, num_images_shown=2)
    _, records, outputs, labels = dataset
    colors = class_colors({}, 4)
    for i, panel in enumerate(evaluator.panels):
        prediction = outputs[i]["sem_seg"].argmax(0).numpy()
        row = SheetRow(f"{i}.png", np.zeros((*labels[i].shape, 3), np.uint8), [labels[i], prediction])
        titles = ["image", "label", "prediction"]
        assert np.array_equal(panel, prediction_sheet([row], titles, CLASSES, colors))
    assert len(evaluator.panels) == 2
    image = torch.arange(105, dtype=torch.uint8).view(3, 5, 7)
    named = StreamingSemSegEvaluator(dataset[0], label_reader=np.load, num_images_shown=1, image_format="BGR")
    named.process([{**records[0], "image": image, "image_id": "val/first"}], outputs[:1])
    shown = image.flip(0).permute(1, 2, 0).numpy()
    row = SheetRow("val/first", shown, [labels[0], outputs[0]["sem_seg"].argmax(0).numpy()])
    assert np.array_equal(named.panels[0], prediction_sheet([row], titles, CLASSES, colors))


def test_the_confusion_matrix_and_labels_can_be_read(dataset, tmp_path):
    evaluator, _ = run(dataset, tmp_path)
    _, records, outputs, labels = dataset
    counted = np.zeros((4, 4), np.int64)
    for output, label in zip(outputs, labels, strict=True):
        for true, predicted in zip(label.ravel(), output["sem_seg"].argmax(0).ravel().tolist(), strict=True):
            if true != 255:
                counted[true, predicted] += 1
    assert np.array_equal(evaluator.confusion, counted)
    assert np.array_equal(evaluator.read_label(records[1]), labels[1])
    evaluator.reset()
    assert evaluator.confusion is None


def test_reset_forgets(dataset, tmp_path):
    evaluator, first = run(dataset, tmp_path)
    evaluator.reset()
    name, records, outputs, _ = dataset
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [output])
    second = evaluator.evaluate()["sem_seg"]
    assert {k: v for k, v in second.items() if v == v} == {
        k: v for k, v in first["sem_seg"].items() if v == v
    }


def test_label_of_another_size_names_the_file(dataset, tmp_path):
    name, records, *_ = dataset
    evaluator = StreamingSemSegEvaluator(name, label_reader=np.load)
    with pytest.raises(DatasetError, match=r"0.npy' has 5 x 7 pixels.*prediction for its image 4 x 7"):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(4, 4, 7)}])


@pytest.mark.parametrize("value", [4, 254, 256, 70000, -1])
def test_class_outside_the_list_names_the_file(dataset, value):
    name, records, *_ = dataset
    np.save(records[0]["sem_seg_file_name"], np.full((5, 7), value, dtype=np.int32))
    evaluator = StreamingSemSegEvaluator(name, label_reader=np.load)
    message = rf"0.npy' has the class {value} \(35 pixels.*outside 0 to 3 and not 255"
    with pytest.raises(DatasetError, match=message):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(4, 5, 7)}])


def test_model_with_another_number_of_classes(dataset):
    name, records, *_ = dataset
    evaluator = StreamingSemSegEvaluator(name, label_reader=np.load)
    with pytest.raises(ConfigError, match="puts out 3 classes and 'evaluator_test' has 4: set MODEL"):
        evaluator.process(records[:1], [{"sem_seg": torch.zeros(3, 5, 7)}])


def test_no_image_at_all(dataset):
    evaluator = StreamingSemSegEvaluator(dataset[0], label_reader=np.load)
    assert np.isnan(evaluator.evaluate()["sem_seg"]["mIoU"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counts_on_the_device_of_the_predictions(dataset, tmp_path):
    _, expected = run(dataset, tmp_path / "cpu")
    on_gpu = [{"sem_seg": output["sem_seg"].cuda()} for output in dataset[2]]
    evaluator, found = run((dataset[0], dataset[1], on_gpu, dataset[3]), tmp_path / "gpu")
    assert evaluator._confusion.is_cuda
    assert found["sem_seg"]["mIoU"] == expected["sem_seg"]["mIoU"]


def evaluate_share(folder, rank_of_image):
    """Evaluates on each process the images that are its own; runs in a process of its own."""
    from detectron2.utils import comm

    name = "evaluator_share"
    records = [{"file_name": f"{i}", "sem_seg_file_name": f"{folder}/{i}.npy"} for i in range(3)]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    evaluator = StreamingSemSegEvaluator(
        name, f"{folder}/out", label_reader=np.load, predictions=["png", "json"]
    )
    for i, rank in enumerate(rank_of_image):
        if rank == comm.get_rank():
            logits = torch.from_numpy(np.load(f"{folder}/logits{i}.npy"))
            evaluator.process([records[i]], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.slow
@pytest.mark.parametrize("rank_of_image", [(0, 1, 0), (1, 1, 1)])
def test_two_processes_count_together_and_both_know_the_result(dataset, tmp_path, rank_of_image):
    from tests.distributed.launching import run_processes

    for i, output in enumerate(dataset[2]):
        np.save(tmp_path / f"logits{i}.npy", output["sem_seg"].numpy())
    _, expected = run(dataset, tmp_path / "one")
    shares = run_processes(evaluate_share, 2, tmp_path, str(tmp_path), rank_of_image)
    for scores in shares:
        assert scores["mIoU"] == expected["sem_seg"]["mIoU"]
    report = json.loads((tmp_path / "out" / "evaluation" / "evaluator_share.json").read_text())
    assert report["num_images"] == 3
    files = tmp_path / "out" / "evaluation"
    assert len(list((files / "evaluator_share" / "png").glob("*.png"))) == 3
    entries = json.loads((files / "evaluator_share_predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} == {"0", "1", "2"}
