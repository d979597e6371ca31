"""Predictions of a finished run, read from its folder."""

import shutil

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.apps.compare.pictures import predict
from regseg_d2.common.errors import CheckpointError
from regseg_d2.config.files import format_config
from regseg_d2.data.loader import load_records
from regseg_d2.engine.trained_model import load_trained_model
from tests.data.data_helpers import registered, toy_spec, write_toy
from tests.helpers import small_cfg

NUM_CLASSES = 300


def write_run(folder, class_id, iteration=None):
    """A run's folder whose model says ``class_id`` of every pixel."""
    folder.mkdir()
    cfg = small_cfg("FCN", ["CAR"], SEM_SEG_HEAD__NUM_CLASSES=NUM_CLASSES)
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
        predictions = predict(tmp_path / "run", "toy")
        assert sorted(predictions) == sorted(record["file_name"] for record in load_records("toy"))
    for prediction in predictions.values():
        assert prediction.shape == (20, 30)
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
