"""Data sets of 255 classes and more: the whole way from label files to predictions."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from regseg_d2.common.errors import DatasetError, UserError
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from regseg_d2.modeling.losses import SegmentationLoss
from regseg_d2.weights.reading import load_file
from tests.engine.toys import same_state

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2]}
  SEM_SEG_HEAD: {IN_FEATURES: [res2], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
  REGULARIZERS:
    NAMES: [CAR, RegionContrast, RCH, PNE, MDRL, ContrastSeg]
    ContrastSeg: {MEMORY: True, MEMORY_SIZE: 4}
    RegionContrast: {BANK_SIZE: 4}
INPUT: {CROP: {SIZE: [32, 32]}}
SOLVER: {IMS_PER_BATCH: 3, BASE_LR: 0.1}
DATALOADER: {NUM_WORKERS: 0}
TEST: {PREDICTIONS: [png]}
SEED: 5
"""


def blocks(number, classes, void):
    """A label of 16 x 16 blocks: void, and a few classes of the whole range, the last one among them."""
    rng = np.random.default_rng(number)
    values = rng.choice([0, classes // 2, classes - 2, classes - 1], (3, 4))
    values[0, :3] = (classes - 1, classes - 2, void)
    return np.kron(values, np.ones((16, 16), dtype=np.int64))


def write_data(folder, *, classes, void, dtype, name, written_void=None):
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(3):
        label = blocks(number, classes, void if written_void is None else written_void)
        image = np.stack([label * step % 256 for step in (37, 101, 211)], axis=-1).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(label.astype(dtype)).save(folder / "labels" / f"{number}.png")
    content = {
        "name": name,
        "root": ".",
        "classes": [f"c{i}" for i in range(classes)],
        "ignore_value": void,
        "splits": {"all": {"images": "images", "labels": "labels"}},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture
def train(tmp_path):
    """Trains, evaluates and writes predictions; returns the folder and the scores."""

    def run(name, *, classes, void, dtype, steps=2, head_void=None, written_void=None):
        data = write_data(
            tmp_path / f"{name}_data",
            classes=classes,
            void=void,
            dtype=dtype,
            name=name,
            written_void=written_void,
        )
        (tmp_path / "config.yaml").write_text(CONFIG)
        keys = {
            "DATASETS.DECLARED": [str(data)],
            "DATASETS.TRAIN": [f"{name}_all"],
            "DATASETS.TEST": [f"{name}_all"],
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
            "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": void if head_void is None else head_void,
            "SOLVER.MAX_ITER": steps,
            "OUTPUT_DIR": tmp_path / name,
        }
        pairs = [str(word) for pair in keys.items() for word in pair]
        arguments = ["--config-file", str(tmp_path / "config.yaml"), *pairs]
        results = main(build_argument_parser().parse_args(arguments))
        return tmp_path / name, results[f"{name}_all"]["sem_seg"]

    return run


def scores_of_files(folder, name, classes, void):
    """Mean IoU and pixel accuracy in percent of the predictions that were written, pixel by pixel."""
    confusion = np.zeros((classes, classes))
    for number in range(3):
        with Image.open(folder / "evaluation" / f"{name}_all" / "png" / f"{number}.png") as image:
            predicted = np.array(image).astype(np.int64)
        label = blocks(number, classes, void)
        for true, guess in zip(label.ravel(), predicted.ravel(), strict=True):
            if true != void:
                confusion[true, guess] += 1
    hits, there = np.diag(confusion), confusion.sum(axis=1)
    assert hits[classes - 1] > 0  # the test sees the largest class of all
    iou = hits[there > 0] / (there + confusion.sum(axis=0) - hits)[there > 0]
    return 100 * iou.mean(), 100 * hits.sum() / confusion.sum()


@pytest.mark.parametrize(("classes", "void", "dtype"), [(255, 255, np.uint8), (300, 65535, np.uint16)])
def test_the_scores_are_those_of_the_files_that_are_written(train, classes, void, dtype):
    folder, scores = train("many", classes=classes, void=void, dtype=dtype, steps=20)
    miou, accuracy = scores_of_files(folder, "many", classes, void)
    assert scores["mIoU"] == pytest.approx(miou, abs=1e-9)
    assert scores["pACC"] == pytest.approx(accuracy, abs=1e-9)
    weights = load_file(str(folder / "model_final.pth"))["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_255_classes_train_alike_with_8_and_16_bits(train):
    small, _ = train("small", classes=255, void=255, dtype=np.uint8)
    large, _ = train("large", classes=255, void=65535, dtype=np.uint16)
    first, second = (load_file(str(folder / "model_final.pth"))["model"] for folder in (small, large))
    assert same_state(first, second)


@pytest.mark.parametrize("loss_type", ["cross_entropy", "ohem"])
@pytest.mark.parametrize(("classes", "void"), [(255, 255), (300, 65535)])
def test_the_loss_of_many_classes(loss_type, classes, void):
    logits = torch.randn(2, classes, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(np.stack([blocks(i, classes, void) for i in range(2)]))
    loss = SegmentationLoss(
        num_classes=classes, ignore_value=void, loss_type=loss_type, ohem_threshold=1.0, ohem_min_kept=0
    )
    resized = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(resized, labels, ignore_index=void)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("classes", [256, 300])
def test_255_cannot_be_void_and_a_class(tmp_path, classes):
    path = write_data(tmp_path / "data", classes=classes, void=255, dtype=np.uint16, name="both")
    with pytest.raises(UserError, match=rf"'ignore_value' is 255.*0 to {classes - 1}, such as 65535"):
        register_declared([path])


def test_the_head_needs_the_void_value_of_the_data(train):
    with pytest.raises(UserError, match="IGNORE_VALUE is 255, but the ignore_label of"):
        train("other", classes=300, void=65535, dtype=np.uint16, head_void=255)


def test_a_void_value_of_16_bits_that_is_not_declared_is_an_error(train):
    with pytest.raises(
        DatasetError, match=r"0\.png holds values that mean nothing: 65535 .*0 to 254 and 255"
    ):
        train("mixed", classes=255, void=255, dtype=np.uint16, written_void=65535)
