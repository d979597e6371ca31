"""Measures beside mIoU, against loops over pixels."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.evaluation.corruptions import KINDS, corrupt
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor
from regseg_d2.evaluation.measures import (
    Calibration,
    ClassCenters,
    NearestCenter,
    mean_over,
    tail_classes,
)
from regseg_d2.evaluation.measuring import FeatureReader
from regseg_d2.evaluation.metrics import json_number
from tests.helpers import small_cfg


@pytest.fixture
def images():
    """Three images of five classes, of which class 3 is in none, with void (-1) and a label beyond."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(4, *size)) + 50, rng.choice([0, 1, 2, 4, -1, 7], size=size))
        for size in [(3, 5), (6, 2), (4, 4)]
    ]


def pixels_by_class(images, num_classes=5):
    pixels = {k: [] for k in range(num_classes)}
    for feature, label in images:
        for i in range(label.shape[0]):
            for j in range(label.shape[1]):
                if 0 <= label[i, j] < num_classes:
                    pixels[label[i, j]].append(feature[:, i, j])
    return {k: np.array(v) for k, v in pixels.items() if v}


def centers_of(images):
    centers = ClassCenters(5, 4, torch.device("cpu"))
    for feature, label in images:
        centers.add(torch.from_numpy(feature).float(), torch.from_numpy(label))
    return centers


def test_distances(images):
    pixels = pixels_by_class(images)
    means = {k: v.mean(axis=0) for k, v in pixels.items()}
    intra = np.mean([math.sqrt(np.mean([np.sum((x - means[k]) ** 2) for x in v])) for k, v in pixels.items()])
    inter = np.mean([np.linalg.norm(means[a] - means[b]) for a in means for b in means if a < b])
    measured = centers_of(images).distances()
    # Features are float32 before they are added up.
    assert measured["intra_class_distance"] == pytest.approx(intra, rel=1e-6)
    assert measured["inter_class_distance"] == pytest.approx(inter, rel=1e-6)
    assert measured["intra_inter_ratio"] == pytest.approx(intra / inter, rel=1e-6)


def test_the_ratio_has_no_scale(images):
    scaled = [(1000 * feature, label) for feature, label in images]
    ratios = [centers_of(each).distances()["intra_inter_ratio"] for each in (images, scaled)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


def test_one_class_has_no_ratio(images):
    one = [(feature, np.zeros_like(label)) for feature, label in images]
    assert math.isnan(centers_of(one).distances()["intra_inter_ratio"])
    empty = centers_of([(feature, np.full_like(label, -1)) for feature, label in images]).distances()
    assert all(math.isnan(value) for value in empty.values())
    assert json.dumps([json_number(value) for value in empty.values()]).count("null") == 3


def test_nearest_center(images):
    train = pixels_by_class(images[:2])
    means = {k: v.mean(axis=0) for k, v in train.items()}
    right = total = 0
    for k, pixels in pixels_by_class(images).items():
        for x in pixels:
            nearest = min(means, key=lambda c: np.sum((x - means[c]) ** 2))
            right += nearest == k
            total += 1
    centers = centers_of(images[:2])
    nearest = NearestCenter(centers.centers, centers.present)
    for feature, label in images:
        nearest.add(torch.from_numpy(feature), torch.from_numpy(label))
    assert nearest.accuracy() == pytest.approx(100 * right / total, rel=1e-12)
    assert math.isnan(NearestCenter(centers.centers, centers.present).accuracy())


def test_calibration():
    rng = np.random.default_rng(1)
    calibration = Calibration(num_bins=15)
    bins = {b: [] for b in range(15)}
    for size in [(5, 6), (7, 3)]:
        logits = 2 * rng.normal(size=(4, *size))
        label = rng.choice([0, 1, 2, 3, -1], size=size)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
        calibration.add(torch.from_numpy(probabilities), torch.from_numpy(label))
        for i in range(size[0]):
            for j in range(size[1]):
                if label[i, j] >= 0:
                    p = probabilities[:, i, j]
                    bins[int(p.max() * 15)].append((p.max(), p.argmax() == label[i, j]))
    total = sum(map(len, bins.values()))
    error = sum(
        len(b) / total * abs(np.mean([r for _, r in b]) - np.mean([c for c, _ in b]))
        for b in bins.values()
        if b
    )
    assert calibration.error() == pytest.approx(100 * error, rel=1e-10)


def test_a_sure_and_right_network_is_calibrated():
    calibration = Calibration()
    label = torch.tensor([[0, 1, -1]])
    calibration.add(F.one_hot(label.clamp(min=0), 2).permute(2, 0, 1).double(), label)
    assert calibration.error() == 0.0
    calibration.add(F.one_hot(1 - label.clamp(min=0), 2).permute(2, 0, 1).double(), label)
    assert calibration.error() == 50.0


def test_tail():
    assert tail_classes([5, 0, 1, 9, 2, 7, 3]) == [2, 4]  # six classes have pixels
    assert tail_classes([5, 1, 2, 8]) == [1, 2]
    assert mean_over([1.0, math.nan, 4.0], [0, 1, 2]) == 2.5
    assert math.isnan(mean_over([math.nan], [0]))


def test_corruptions_are_drawn_from_their_names():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    state = torch.random.get_rng_state()
    for kind in KINDS:
        weak, strong = (corrupt(image, kind, severity, "a.png") for severity in (1, 5))
        assert weak.dtype == torch.uint8 and weak.shape == image.shape
        assert torch.equal(weak, corrupt(image, kind, 1, "a.png"))
        change = [(other.int() - image.int()).abs().float().mean() for other in (weak, strong)]
        assert 0 < change[0] < change[1], kind
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(
        corrupt(image, "gaussian_noise", 1, "a.png"), corrupt(image, "gaussian_noise", 1, "b.png")
    )


def test_brightness_and_contrast_by_hand():
    image = torch.tensor([[[100, 0]], [[50, 0]], [[0, 0]]], dtype=torch.uint8)
    lit = corrupt(image, "brightness", 2, "")
    # The value 100 / 255 grows by 0.2, and with it all channels; black becomes grey.
    assert lit[:, 0, 0].tolist() == [151, 76, 0] or lit[:, 0, 0].tolist() == [151, 75, 0]
    assert lit[:, 0, 1].tolist() == [51, 51, 51]
    assert corrupt(image, "contrast", 1, "")[0, 0].tolist() == [70, 30]


def test_unknown_corruptions():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="'fog'"):
        corrupt(image, "fog", 1, "")
    with pytest.raises(ConfigError, match="severity 6"):
        corrupt(image, "jpeg", 6, "")


def test_the_feature_of_a_prediction_is_that_of_a_forward_of_its_own():
    model = build_model(small_cfg("FCN")).eval()
    reader = FeatureReader(model, "sem_seg_head.predictor:in")
    image = torch.randint(0, 256, (3, 33, 47), dtype=torch.uint8)
    predictor, forwards = Predictor(model, InferenceProtocol()), []
    with torch.no_grad():
        model.backbone.register_forward_hook(lambda *_: forwards.append(1))
        feature, scores = reader.during(lambda: predictor.scores([{"image": image}])[0]["sem_seg"])
        assert len(forwards) == 1
        assert torch.equal(feature, reader.of(image))
        assert torch.equal(scores, predictor.scores([{"image": image}])[0]["sem_seg"])


@pytest.mark.parametrize(
    "options, one",
    [({}, True), ({"mode": "slide"}, False), ({"flip": True}, False), ({"scales": (0.5,)}, False)]
    + [({"padding": "none"}, False)],
)
def test_which_protocols_are_one_forward_as_in_training(options, one):
    assert InferenceProtocol(**options).is_one_forward == one


def test_the_command_line_measures_what_the_evaluation_prints(tmp_path):
    """Trains for a step; mIoU, by another way, is the evaluator's to the last digit."""
    config = "configs/quick/deeplabv3_efficientnet_lite0_car.yaml"
    folder = str(tmp_path / "run")
    declared = tmp_path / "few.yaml"
    declared.write_text(_few_images(tmp_path))
    options = ["DATASETS.DECLARED", f"['{declared}']", "DATASETS.TRAIN", "('few_train',)"]
    options += ["DATASETS.TEST", "('few_val',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "OUTPUT_DIR", folder]
    options += ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    options += ["INPUT.MIN_SIZE_TEST", "48"]
    run = [sys.executable, "tools/train_net.py", "--config-file", config, *options]
    subprocess.run(run, check=True, capture_output=True, text=True)
    measured = subprocess.run(
        [sys.executable, "tools/measure.py", "--config-file", f"{folder}/config.yaml"]
        + ["--corruptions", "jpeg", "--output", str(tmp_path / "m.json")]
        + ["MODEL.WEIGHTS", f"{folder}/model_final.pth"],
        capture_output=True,
        text=True,
    )
    assert measured.returncode == 0, measured.stderr
    values = json.loads((tmp_path / "m.json").read_text())["few_val"]
    evaluated = json.loads((tmp_path / "run" / "evaluation" / "few_val.json").read_text())
    assert values["mIoU"] == pytest.approx(evaluated["metrics"]["mIoU"], rel=1e-12)
    assert 0 <= values["calibration_error"] <= 100 and 0 <= values["nearest_center_accuracy"] <= 100
    assert values["intra_inter_ratio"] > 0
    assert values["mIoU_corrupted"] == values["mIoU_jpeg"]
    assert "nearest_center_accuracy" in measured.stdout


def _few_images(folder) -> str:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(4):
            label = np.kron(rng.choice([0, 1, 2, 255], size=(5, 7)), np.ones((14, 14))).astype(np.uint8)
            image = rng.integers(0, 256, size=(70, 98, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "images" / split / f"{i}.png")
            Image.fromarray(label).save(folder / "labels" / split / f"{i}.png")
    splits = "".join(
        f"  {split}: {{images: images/{split}, labels: labels/{split}}}\n" for split in ("train", "val")
    )
    return f"name: few\nroot: {folder}\nclasses: [a, b, c]\nsplits:\n{splits}"
