"""Predictions of finished runs, read from their folders and drawn side by side."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.apps.compare import pictures
from regseg_d2.apps.compare.runs import CompareError
from regseg_d2.common.errors import CheckpointError, DatasetError
from regseg_d2.config.files import format_config
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.loader import load_records
from regseg_d2.drawing.sheets import CAPTION, GAP, TITLE, SheetRow, prediction_sheet
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.prediction import ClassList, Prediction
from tests.data.data_helpers import CLASSES, COLORS, registered, toy_spec, write_toy
from tests.helpers import small_cfg

NUM_CLASSES = 300


def write_run(folder, class_id, iteration=None, num_classes=NUM_CLASSES):
    """A run's folder whose model says ``class_id`` of every pixel."""
    folder.mkdir()
    cfg = small_cfg("FCN", ["CAR"], SEM_SEG_HEAD__NUM_CLASSES=num_classes)
    cfg.DATASETS.TEST = ("toy",)
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATALOADER.NUM_WORKERS = 0
    (folder / "config.yaml").write_text(format_config(cfg))
    model = build_model(cfg)
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.zero_()
        model.sem_seg_head.predictor.bias[class_id] = 5.0
    content = {"model": model.state_dict()} | ({} if iteration is None else {"iteration": iteration})
    torch.save(content, folder / "model_final.pth")
    return cfg


@pytest.mark.parametrize("class_id", [3, 299])
def test_classes_beyond_255_are_predicted_as_they_are(tmp_path, class_id):
    write_toy(tmp_path / "data", count=2)
    write_run(tmp_path / "run", class_id)
    classes = tuple(f"class {number}" for number in range(NUM_CLASSES))
    colors = tuple((number % 256, number // 256, 7) for number in range(NUM_CLASSES))
    with registered(toy_spec(tmp_path / "data", classes=classes, colors=colors, ignore_value=1000)):
        predict = pictures.load_predictor(tmp_path / "run", "toy")
        predictions = [predict(record["file_name"]).labels for record in load_records("toy")]
    assert [prediction.shape for prediction in predictions] == [(20, 30)] * 2
    for prediction in predictions:
        assert np.unique(prediction).tolist() == [class_id]


def test_a_trained_model_is_loaded_for_evaluation(tmp_path):
    cfg = write_run(tmp_path / "run", 3, iteration=41)
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    half_written = tmp_path / "run" / ".model_0000001.pth.abc.partial"
    half_written.write_bytes(b"half")
    trained = load_trained_model(cfg)
    assert trained.completed_steps == 42
    assert not trained.model.training
    assert trained.model.sem_seg_head.predictor.bias[3].item() == 5.0
    assert half_written.exists()  # the run may still be training
    # Without its regularizers too.
    cfg.MODEL.REGULARIZERS.NAMES = []
    assert load_trained_model(cfg).completed_steps == 42


def test_resume_takes_the_last_checkpoint_of_the_folder(tmp_path):
    cfg = write_run(tmp_path / "run", 3)
    write_run(tmp_path / "other", 4)
    cfg.MODEL.WEIGHTS = str(tmp_path / "other" / "model_final.pth")
    assert load_trained_model(cfg, resume=True).model.sem_seg_head.predictor.bias[4].item() == 5.0
    (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")
    trained = load_trained_model(cfg, resume=True)
    assert trained.model.sem_seg_head.predictor.bias[3].item() == 5.0
    assert trained.completed_steps is None
    assert load_trained_model(cfg).model.sem_seg_head.predictor.bias[4].item() == 5.0
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(CheckpointError, match="nor does its folder"):
        load_trained_model(cfg)
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(CheckpointError, match="no weights to evaluate"):
        load_trained_model(cfg)


@pytest.fixture
def toy(tmp_path):
    """Images and labels of a registered data set of three images."""
    write_toy(tmp_path / "data", count=3)
    with registered(toy_spec(tmp_path / "data")):
        records = load_records("toy")
        reader = label_reader_for("toy")
        yield [
            (record["image_id"], read_image(record["file_name"]), reader(record["sem_seg_file_name"]))
            for record in records
        ]


def predictors_of(monkeypatch, predictions):
    """Makes runs predict arrays: ``{folder: [of each image]}``."""

    def load_predictor(folder, dataset_name):
        classes = ClassList.of_dataset(dataset_name)
        files = [record["file_name"] for record in load_records(dataset_name)]
        labels = dict(zip(files, predictions[folder.name], strict=True))
        return lambda file: Prediction(labels[file], read_image(file), classes)

    monkeypatch.setattr(pictures, "load_predictor", load_predictor)


def read_sheet(path):
    return cv2.imread(str(path))[..., ::-1]


def test_images_on_which_runs_differ_most_come_first(tmp_path, toy, monkeypatch):
    a, b, c = ([np.zeros((20, 30), np.uint8) for _ in toy] for _ in range(3))
    b[2][:10] = 1
    b[1][:2] = 2
    c[1][:3] = 1
    predictors_of(monkeypatch, {"a": a, "b": b, "c": c})
    runs = {name: tmp_path / name for name in "abc"}
    pictures.compare_predictions(runs, "toy", tmp_path / "out.png", count=2)
    rows = [SheetRow(toy[i][0], toy[i][1], [toy[i][2], a[i], b[i], c[i]]) for i in (2, 1)]
    colors = np.array(COLORS, np.uint8)
    expected = prediction_sheet(rows, ["image", "label", "a", "b", "c"], CLASSES, colors)
    assert np.array_equal(read_sheet(tmp_path / "out.png"), expected)


def test_of_one_run_the_images_with_the_most_wrong_pixels_come_first(tmp_path, toy, monkeypatch):
    labels = [np.where(label == 255, 0, label).astype(np.uint8) for *_, label in toy]
    labels[1][1:5] = (labels[1][1:5] + 1) % 3
    labels[0][-1, :9] = (labels[0][-1, :9] + 1) % 3
    predictors_of(monkeypatch, {"a": labels})
    pictures.compare_predictions({"a": tmp_path / "a"}, "toy", tmp_path / "out.png")
    rows = [SheetRow(toy[i][0], toy[i][1], [toy[i][2], labels[i]]) for i in (1, 0, 2)]
    expected = prediction_sheet(rows, ["image", "label", "a"], CLASSES, np.array(COLORS, np.uint8))
    assert np.array_equal(read_sheet(tmp_path / "out.png"), expected)


def test_a_label_of_another_size_is_named(tmp_path, toy, monkeypatch):
    predictors_of(monkeypatch, {"a": [np.zeros((20, 31), np.uint8)] * 3})
    with pytest.raises(DatasetError, match="000.png' has 20 x 30 pixels .* and its image 20 x 31"):
        pictures.compare_predictions({"a": tmp_path / "a"}, "toy", tmp_path / "out.png")


def test_the_command_line_draws_the_runs_that_it_compares(tmp_path, toy, compare_runs, capsys):
    for name, class_id in (("one", 1), ("two", 2)):
        write_run(tmp_path / name, class_id, num_classes=len(CLASSES))
        classes = [{"name": c, "IoU": 10.0 * class_id, "pixels": 9} for c in CLASSES]
        report = {"metrics": {"mIoU": 10.0 * class_id}, "classes": classes, "num_images": 3}
        (tmp_path / name / "evaluation").mkdir()
        (tmp_path / name / "evaluation" / "toy.json").write_text(json.dumps(report))
    # In one group they would be seeds of one setting.
    text = (tmp_path / "two" / "config.yaml").read_text()
    (tmp_path / "two" / "config.yaml").write_text(text.replace("BASE_LR: 0.01", "BASE_LR: 0.02"))
    folders = (tmp_path / "two", tmp_path / "one")
    compare_runs(*folders, "--baseline", tmp_path / "one", "--pictures", tmp_path / "out.png")
    width, height, top = 270, 180, TITLE + CAPTION
    sheet = read_sheet(tmp_path / "out.png")
    for _ in range(3):
        for column, class_id in ((2, 1), (3, 2)):
            left = column * (width + GAP)
            assert (sheet[top : top + height, left : left + width] == COLORS[class_id]).all()
        top += height + GAP + CAPTION
    assert (sheet[TITLE + CAPTION :][:height, :width] == np.kron(toy[0][1], np.ones((9, 9, 1), int))).all()
    with pytest.raises(SystemExit) as info:
        compare_runs(*folders, "--pictures", tmp_path / "out.png", "--dataset", "toys")
    assert info.value.code == 2
    assert 'No data set is named "toys" (did you mean' in capsys.readouterr().err


def test_runs_that_cannot_be_drawn(tmp_path, toy):
    write_run(tmp_path / "run", 3)
    with pytest.raises(
        CompareError, match="run' was trained for 300 classes and 'toy' has 3: give --dataset"
    ):
        pictures.load_predictor(tmp_path / "run", "toy")
    (tmp_path / "run" / "model_final.pth").unlink()
    with pytest.raises(CompareError, match="no model_final.pth to predict with: let the run finish"):
        pictures.load_predictor(tmp_path / "run", "toy")
