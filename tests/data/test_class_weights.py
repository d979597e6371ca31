"""Class weights against literal formulas; counting labels once a run."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data import label_counts
from regseg_d2.data.balance import count_classes, write_frequencies
from regseg_d2.data.class_weights import WEIGHTINGS, measured_class_weights
from regseg_d2.data.label_counts import FILE_NAME, training_label_counts
from regseg_d2.data.main_process import from_main_process
from regseg_d2.engine.class_weighting import apply_class_weighting
from regseg_d2.modeling.losses import SegmentationLoss
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy
from tests.distributed.launching import run_processes

# Pixels of three classes in four labels; class 3 never occurs.
PER_IMAGE = np.array([[90, 10, 0, 0], [50, 0, 50, 0], [100, 0, 0, 0], [40, 30, 30, 0]])


def _literal(name: str, beta: float) -> list[float]:
    total = sum(map(sum, PER_IMAGE.tolist()))
    pixels = [sum(row[c] for row in PER_IMAGE.tolist()) for c in range(4)]
    images = [sum(row[c] > 0 for row in PER_IMAGE.tolist()) for c in range(4)]
    if name == "enet":
        return [1 / math.log(1.02 + n / total) for n in pixels]
    if name == "median_frequency":
        within = [sum(sum(row) for row in PER_IMAGE.tolist() if row[c]) for c in range(3)]
        frequency = [n / w for n, w in zip(pixels[:3], within, strict=True)]
        return [sorted(frequency)[1] / f for f in frequency] + [1]
    if name == "inverse":
        raw = [total / n for n in pixels[:3]]
    else:
        raw = [(1 - beta) / (1 - beta**n) for n in images[:3]]
    return [3 * weight / sum(raw) for weight in raw] + [1]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_equal_the_formulas(name, beta):
    weights = WEIGHTINGS[name](count_classes(PER_IMAGE, 7), beta)
    np.testing.assert_allclose(weights, _literal(name, beta), rtol=1e-12)


def test_effective_number_between_no_weights_and_the_inverse():
    balance = count_classes(PER_IMAGE, 0)
    np.testing.assert_allclose(WEIGHTINGS["effective_number"](balance, 0.0), 1)
    inverse = 1 / balance.images_with_class[:3]
    almost = WEIGHTINGS["effective_number"](balance, 1 - 1e-12)[:3]
    np.testing.assert_allclose(almost, inverse / inverse.mean(), rtol=1e-3)


@pytest.fixture
def toy(tmp_path):
    """Four labels of 10 x 10 with the pixels of PER_IMAGE (three classes), one row more of "ignore"."""
    write_toy(tmp_path, count=4, size=(11, 10))
    for i, row in enumerate(PER_IMAGE[:, :3]):
        label = np.full((11, 10), 255, dtype=np.uint8)
        label[:10] = np.repeat(np.arange(3, dtype=np.uint8), row).reshape(10, 10)
        Image.fromarray(label).save(tmp_path / "labels" / f"{i:03d}.png")
    with registered(toy_spec(tmp_path)):
        yield tmp_path


def _cfg(toy, **changes):
    return toy_cfg(OUTPUT_DIR=str(toy / "out"), MODEL__SEM_SEG_HEAD__CLASS_WEIGHTING="enet", **changes)


def test_labels_are_counted(toy):
    counts = training_label_counts(_cfg(toy))
    np.testing.assert_array_equal(counts.per_image, PER_IMAGE[:, :3])
    assert counts.ignored_pixels == 40
    np.testing.assert_allclose(measured_class_weights(_cfg(toy)), _literal("enet", 0)[:3])


def test_several_processes_count_the_same(toy, monkeypatch):
    monkeypatch.setattr(label_counts, "_FEW", 1)
    monkeypatch.setattr(label_counts, "_CHUNK", 1)
    counts = training_label_counts(_cfg(toy, DATALOADER__NUM_WORKERS=2))
    np.testing.assert_array_equal(counts.per_image, PER_IMAGE[:, :3])


def test_a_resumed_run_reads_what_was_counted(toy, monkeypatch):
    first = measured_class_weights(_cfg(toy))
    monkeypatch.setattr(
        label_counts, "count_label_files", lambda *args, **options: pytest.fail("counted again")
    )
    assert measured_class_weights(_cfg(toy)) == first


def test_other_labels_are_counted_again(toy):
    training_label_counts(_cfg(toy))
    Image.fromarray(np.full((11, 10), 1, dtype=np.uint8)).save(toy / "labels" / "000.png")
    assert training_label_counts(_cfg(toy)).per_image[0].tolist() == [0, 110, 0]
    other = toy_spec(toy, name="mapped", label_map={0: 1, 1: 0, 2: 2, 255: 255})
    with registered(other):
        counts = training_label_counts(_cfg(toy, DATASETS__TRAIN=("mapped",)))
    assert counts.per_image[0].tolist() == [110, 0, 0]


@pytest.mark.parametrize("content", [b"", b"PK damaged", None])
def test_a_damaged_file_of_counts_is_made_again(toy, content):
    training_label_counts(_cfg(toy))
    path = toy / "out" / FILE_NAME
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    np.testing.assert_array_equal(training_label_counts(_cfg(toy)).per_image, PER_IMAGE[:, :3])


def test_labels_that_cannot_be_read(toy):
    (toy / "labels" / "002.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"002\.png cannot be read"):
        training_label_counts(_cfg(toy))
    counts = training_label_counts(_cfg(toy, DATALOADER__BAD_FILES="skip"))
    assert counts.per_image[2].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(counts.per_image[3], PER_IMAGE[3, :3])


def test_frequencies_of_a_file(toy):
    path = toy / "frequencies.json"
    write_frequencies(path, "toy", count_classes(PER_IMAGE[:, :3], 40))
    for name in WEIGHTINGS:
        cfg = _cfg(toy, DATASETS__FREQUENCIES=str(path))
        cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTING = name
        np.testing.assert_allclose(measured_class_weights(cfg), _literal(name, 0.999)[:3])
    assert not (toy / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pixels": [1, 2]}, "has 2 numbers"),
        ({"pixels": [1, 2, -3]}, 'no "pixels" that is a list'),
        ({"pixels": "many"}, 'no "pixels" that is a list'),
        ({"images_with_class": None}, 'no "images_with_class"'),
        ({"num_images": 1.5}, 'no "num_images" that is a whole number'),
    ],
)
def test_unusable_frequencies(toy, change, words):
    path = toy / "frequencies.json"
    write_frequencies(path, "toy", count_classes(PER_IMAGE[:, :3], 40))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=words):
        measured_class_weights(_cfg(toy, DATASETS__FREQUENCIES=str(path)))


@pytest.mark.parametrize("content", [None, "no json", "[]"])
def test_no_frequencies(toy, content):
    path = toy / "frequencies.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"DATASETS\.FREQUENCIES: .*frequencies\.json"):
        measured_class_weights(_cfg(toy, DATASETS__FREQUENCIES=str(path)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"MODEL__SEM_SEG_HEAD__CLASS_WEIGHTING": "balanced"}, "CLASS_WEIGHTING is 'balanced'"),
        ({"MODEL__SEM_SEG_HEAD__CLASS_WEIGHTS": [1.0, 1.0, 1.0]}, "CLASS_WEIGHTS gives weights too"),
        ({"MODEL__SEM_SEG_HEAD__CLASS_WEIGHTING_BETA": 1.0}, "CLASS_WEIGHTING_BETA is 1.0"),
    ],
)
def test_impossible_values_name_their_key(toy, changes, words):
    cfg = toy_cfg(**{"MODEL__SEM_SEG_HEAD__CLASS_WEIGHTING": "enet", **changes})
    with pytest.raises(ConfigError, match=words):
        measured_class_weights(cfg)


def count_in_one():
    results = []
    for function in (lambda: comm.get_rank() + 7, fail_in_one):
        try:
            results.append(from_main_process(function))
        except DatasetError as error:
            results.append(str(error))
    return results


def fail_in_one():
    raise DatasetError(f"process {comm.get_rank()} has no labels")


@pytest.mark.slow
def test_all_processes_get_the_result_or_the_error_of_the_main_one(tmp_path):
    torch.set_num_threads(1)
    assert run_processes(count_in_one, 2, tmp_path) == [[7, "process 0 has no labels"]] * 2


def test_no_weighting_reads_nothing():
    assert measured_class_weights(toy_cfg(train=("no such data set",))) is None


def test_the_losses_get_the_weights(toy):
    loss = SegmentationLoss(num_classes=3, ignore_value=255)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), loss)
    apply_class_weighting(_cfg(toy), model)
    weights = torch.tensor(_literal("enet", 0)[:3])
    torch.testing.assert_close(loss.class_weights, weights)
    logits, targets = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    expected = torch.nn.functional.cross_entropy(logits, targets, weights)
    torch.testing.assert_close(loss(logits, targets), expected)
    assert "1.class_weights" not in model.state_dict()
    with pytest.raises(ConfigError, match="takes no class weights"):
        apply_class_weighting(_cfg(toy), torch.nn.Conv2d(3, 3, 1))
