"""TensorBoard after training: the confusion matrix and pixels in feature space, read back from the files."""

import collections
import csv
import io
import logging
import os
import re
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.engine.final_pictures import COLUMNS, draw_confusion, write_projector
from regseg_d2.engine.interruption import Interrupted
from regseg_d2.evaluation.looking.pixels import SampledPixels, draw_thumbnails
from regseg_d2.evaluation.looking.sampling import pixel_keys
from regseg_d2.weights.reading import load_file
from tests.engine.toys import (
    CLASSES,
    IGNORE,
    SIZE,
    ToySegmentor,
    ToyTrainer,
    register_toy_test_set,
    same_state,
    toy_cfg,
)


@META_ARCH_REGISTRY.register()
class NamedSegmentor(ToySegmentor):
    """Its classifier is called as those of Detectron2."""

    def __init__(self, cfg):
        super().__init__(cfg)
        dropout, predictor = self.sem_seg_head
        parts = [("dropout", dropout), ("predictor", predictor)]
        self.sem_seg_head = nn.Sequential(collections.OrderedDict(parts))


@META_ARCH_REGISTRY.register()
class TwiceSegmentor(NamedSegmentor):
    """Its head runs twice in evaluation."""

    def forward(self, inputs):
        if not self.training:
            super().forward(inputs)
            self.sem_seg_head(torch.zeros(1, 4, 2, 2))
        return super().forward(inputs)


def cfg_of(folder, name, **keys):
    return toy_cfg(
        folder,
        DATASETS__TEST=(name,),
        **{"MODEL__META_ARCHITECTURE": "NamedSegmentor", "TEST__NUM_PIXELS_SHOWN": 4} | keys,
    )


def train(cfg, resume=False, trainer_class=ToyTrainer):
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def read_projector(folder):
    """The embedding's info, its rows by column, tensors, and thumbnails."""
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (info,) = config.embeddings
    text = (folder / info.metadata_path).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    tensors = np.loadtxt(folder / info.tensor_path, delimiter="\t", ndmin=2)
    sprite = np.asarray(Image.open(folder / info.sprite.image_path))
    height, width = info.sprite.single_image_dim
    tiles = sprite.reshape(sprite.shape[0] // height, height, -1, width, 3).swapaxes(1, 2)
    return info, rows, tensors, tiles.reshape(-1, height, width, 3)[: len(rows)]


def half_a_digit(features):
    """Half a unit of the fifth digit of the largest number, which begins behind the point or before it."""
    return 0.5001 * 10.0 ** (np.ceil(np.log10(np.abs(features).max())) - 5)


def expected_pixels(trainer, name, most):
    """Pixels of the lowest keys of each class, with features before the dropout, one by one."""
    model, found = trainer.model.eval(), []
    for record in DatasetCatalog.get(name):
        label = np.load(record["sem_seg_file_name"])
        keys = pixel_keys(trainer.seed, record["file_name"], SIZE)
        image = record["image"]
        with torch.no_grad():
            feature = model.backbone(image[None].float() / 255)[0]
            predicted = model([record])[0]["sem_seg"].argmax(dim=0)
        pixels = image.permute(1, 2, 0).numpy()
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                if label[y, x] != IGNORE:
                    color = class_colors({}, 3)[label[y, x]][None]
                    thumbnail = draw_thumbnails(pixels, np.array([[y, x]]), color)[0]
                    row = (record["file_name"], y, x, CLASSES[predicted[y, x]])
                    found.append((label[y, x], keys[y, x], row, feature[:, y, x].tolist(), thumbnail))
    found.sort(key=lambda each: each[:2])
    return [each for k in range(3) for each in [f for f in found if f[0] == k][:most]]


def test_the_projector_has_the_sampled_pixels_with_their_features(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_pixels")
    trainer = train(cfg_of(tmp_path / "run", name))
    info, rows, tensors, thumbnails = read_projector(tmp_path / "run" / "projector")
    expected = expected_pixels(trainer, name, 4)
    assert info.tensor_name == "pixels:00006"
    assert len(rows) == len(expected) and len(expected) > 4
    assert list(rows[0]) == list(COLUMNS)
    for row, (label, _, (file, y, x, predicted), _, _) in zip(rows, expected, strict=True):
        right = "yes" if CLASSES[label] == predicted else "no"
        assert list(row.values()) == [CLASSES[label], predicted, right, file, str(y), str(x)]
    features = np.array([each[3] for each in expected])
    assert features.shape == (len(rows), 4) and len(np.unique(features, axis=0)) > 4
    assert np.abs(tensors - features).max() <= half_a_digit(features)
    assert np.array_equal(thumbnails, np.stack([each[4] for each in expected]))
    # TensorBoard takes a folder with a file of events for a run.
    assert EventAccumulator(str(tmp_path / "run" / "projector")).Reload().Tags()["images"] == []
    assert [path.name for path in (tmp_path / "run").glob("*projector*")] == ["projector"]


def test_the_confusion_matrix_of_the_last_evaluation_is_a_picture(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_confusion")
    trainer = train(cfg_of(tmp_path / "run", name, TEST__NUM_IMAGES_SHOWN=1, TEST__EVAL_PERIOD=2))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Tags()["images"] == [f"{name}/0", f"{name}/confusion"]
    assert [picture.step for picture in events.Images(f"{name}/0")] == [1, 3, 6]
    (event,) = events.Images(f"{name}/confusion")
    confusion = np.zeros((3, 3), np.int64)
    for record in DatasetCatalog.get(name):
        label = np.load(record["sem_seg_file_name"])
        with torch.no_grad():
            predicted = trainer.model.eval()([record])[0]["sem_seg"].argmax(dim=0).numpy()
        for true, guess in zip(label.ravel(), predicted.ravel(), strict=True):
            if true != IGNORE:
                confusion[true, guess] += 1
    assert np.array_equal(trainer.confusions[name], confusion)
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert np.array_equal(picture.transpose(2, 0, 1), draw_confusion(confusion, CLASSES))
    other = draw_confusion(confusion + np.eye(3, dtype=np.int64) * 50, CLASSES)
    assert not np.array_equal(picture.transpose(2, 0, 1), other)


@pytest.mark.parametrize(
    "keys",
    [
        {"TEST__NUM_PIXELS_SHOWN": 0, "TEST__NUM_IMAGES_SHOWN": 0},
        {"WRITERS": ["metrics_json"], "TEST__NUM_IMAGES_SHOWN": 2},
    ],
)
def test_pictures_can_be_left_away_and_change_nothing_else(tmp_path, keys):
    name = register_toy_test_set(tmp_path, "toy_left_away")
    with_pictures = train(cfg_of(tmp_path / "a", name, TEST__NUM_IMAGES_SHOWN=2))
    without = train(cfg_of(tmp_path / "b", name, **keys))
    assert (tmp_path / "a" / "projector").is_dir()
    assert not (tmp_path / "b" / "projector").exists()
    assert EventAccumulator(str(tmp_path / "b")).Reload().Tags()["images"] == []
    assert with_pictures.results == without.results
    reports = [(tmp_path / run / "evaluation" / f"{name}.json").read_bytes() for run in "ab"]
    assert reports[0] == reports[1]
    # Nothing of the pictures is in the checkpoint.
    a, b = (load_file(str(tmp_path / run / "model_final.pth")) for run in "ab")
    assert same_state(a, b)
    assert with_pictures.model.training == without.model.training


class NeverBetter(ToyTrainer):
    """Has the same score at each evaluation."""

    def evaluate(self):
        return {name: {"sem_seg": {"mIoU": 1.0}} for name in super().evaluate()}


def test_an_early_stop_has_pictures_and_a_run_that_is_resumed_at_its_end_replaces_them(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_stopped")
    cfg = cfg_of(tmp_path / "run", name, TEST__NUM_IMAGES_SHOWN=1, TEST__EVAL_PERIOD=1, TEST__PATIENCE=2)
    steps = train(cfg, trainer_class=NeverBetter).completed_steps
    assert steps == 3
    folder = tmp_path / "run" / "projector"
    assert sorted(path.name for path in folder.glob("0*")) == [f"{steps:05}"]
    assert len(EventAccumulator(str(tmp_path / "run")).Reload().Images(f"{name}/confusion")) == 1
    before = {path.name: path.read_bytes() for path in (folder / f"{steps:05}" / "pixels").iterdir()}
    (folder / "of an older run").write_text("")
    (tmp_path / "run" / ".projector-unfinished").mkdir()  # of a run that was killed
    train(cfg, resume=True, trainer_class=NeverBetter)
    assert not (folder / "of an older run").exists()
    assert not (tmp_path / "run" / ".projector-unfinished").exists()
    assert {path.name: path.read_bytes() for path in (folder / f"{steps:05}" / "pixels").iterdir()} == before


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("ToySegmentor", "ToySegmentor has no classifier 'sem_seg_head.predictor'"),
        ("TwiceSegmentor", "ran twice or more in one forward pass"),
    ],
)
def test_a_network_whose_feature_cannot_be_read_trains_to_its_end_and_says_so(
    tmp_path, caplog, network, reason
):
    name = register_toy_test_set(tmp_path, "toy_unreadable")
    with caplog.at_level(logging.WARNING):
        trainer = train(cfg_of(tmp_path / "run", name, MODEL__META_ARCHITECTURE=network))
    (said,) = [each for each in caplog.messages if "TensorBoard gets no pixels" in each]
    assert reason in said and said.endswith("TEST.NUM_PIXELS_SHOWN 0 asks for none.")
    assert trainer.finished and not trainer.interrupted
    assert not (tmp_path / "run" / "projector").exists()


class SignalInTheSecondPass(ToyTrainer):
    """Gets a signal while the images are gone through for the second time."""

    passes = 0

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        cls.passes += 1
        if cls.passes == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().build_test_loader(cfg, dataset_name)


def test_a_signal_leaves_the_pixels_to_the_resumed_run(tmp_path):
    name = register_toy_test_set(tmp_path, "toy_interrupted")
    trainer = SignalInTheSecondPass(cfg_of(tmp_path / "run", name))
    trainer.resume_or_load(resume=False)
    with pytest.raises(Interrupted, match="after step 6 of 6"):
        trainer.train()
    assert not (tmp_path / "run" / "projector").exists()
    train(cfg_of(tmp_path / "run", name), resume=True)
    assert len(read_projector(tmp_path / "run" / "projector")[1]) > 4


@pytest.mark.parametrize("key", ["TEST__NUM_PIXELS_SHOWN", "TEST__NUM_IMAGES_SHOWN"])
def test_negative_numbers_are_refused(tmp_path, key):
    name = register_toy_test_set(tmp_path, "toy_negative")
    with pytest.raises(ConfigError, match=re.escape(f"{key.replace('__', '.')} is -1; expected 0 or more")):
        ToyTrainer(cfg_of(tmp_path, name, **{key: -1}))


def test_names_with_tabs_and_line_breaks_and_numbers_of_any_size(tmp_path):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(3, 5)) * [1e6, 1.0, 1e3, 0.0, 1e5]).astype(np.float32)
    label, predicted = np.array([0, 1, 1]), np.array([1, 1, 0])
    pixels = SampledPixels(
        image=np.array(["a\tb", "c\nd", "写真"], dtype=object),
        y=np.array([1, 2, 3]),
        x=np.array([4, 5, 6]),
        label=label,
        predicted=predicted,
        features=features,
        thumbnails=rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8),
    )
    write_projector(tmp_path / "projector", pixels, ["x\ty", "\ud800"], 123456)
    info, rows, tensors, thumbnails = read_projector(tmp_path / "projector")
    assert info.tensor_name == "pixels:123456"
    assert [list(row.values()) for row in rows] == [
        ["x\\ty", "\\ud800", "no", "a\\tb", "1", "4"],
        ["\\ud800", "\\ud800", "yes", "c\\nd", "2", "5"],
        ["\\ud800", "x\\ty", "no", "写真", "3", "6"],
    ]
    assert np.abs(tensors - features).max() <= half_a_digit(features)
    assert np.array_equal(thumbnails, pixels.thumbnails)
    flat = pixels.__class__(**{**vars(pixels), "features": np.zeros((3, 2), np.float32)})
    write_projector(tmp_path / "projector", flat, ["a", "b"], 1)
    assert np.array_equal(read_projector(tmp_path / "projector")[2], np.zeros((3, 2)))
