"""Benchmark data sets in small: official layouts, and one check of the whole way from files to mIoU."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from PIL import Image, ImageOps

import regseg_d2.data  # noqa: F401  registers the data sets
from regseg_d2.config import get_regseg_cfg
from regseg_d2.data.checks import check_datasets
from regseg_d2.data.datasets.definitions import Definition
from regseg_d2.data.images import read_image
from regseg_d2.data.labels import label_reader_for
from regseg_d2.engine.trainer import Trainer
from tests.engine import toys  # registers the toy network

SIZE = (32, 48)
# Kinds of image files that benchmark data sets have; see write_image.
IMAGE_KINDS = ("rgb", "grey", "cmyk", "rotated")
_ORIENTATION = 0x0112  # the EXIF tag
_ROTATED = 6  # shown after a turn by 90 degrees clockwise


def write_image(path: Path, kind: str = "rgb", size=SIZE, seed: int = 0) -> None:
    """Writes an image of blocks that is shown in a size; its suffix decides between JPEG and PNG.

    Args:
        path: the file; its folder is made.
        kind: "rgb", "grey" (one channel), "cmyk", or "rotated" (stored lying, with an EXIF orientation).
        size: height and width after the rotation.
        seed: of the colours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]])
    options = {}
    if kind == "rotated":
        image = image.transpose(Image.Transpose.ROTATE_90)
        options["exif"] = Image.Exif()
        options["exif"][_ORIENTATION] = _ROTATED
    elif kind != "rgb":
        image = image.convert({"grey": "L", "cmyk": "CMYK"}[kind])
    image.save(path, **options)


def draw_values(values, size=SIZE, seed: int = 0) -> np.ndarray:
    """Draws a label of blocks, (H, W) of uint8, in which each of the file values occurs if there is room."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(np.resize(np.asarray(values, np.uint8), (size[0] // 4) * (size[1] // 4)))
    blocks = blocks.reshape(size[0] // 4, size[1] // 4)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def write_label(path: Path, values: np.ndarray, palette=None) -> None:
    """Writes file values as a PNG of one channel, or of a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette([part for color in palette for part in color])
    image.save(path)


def load_script(name: str):
    """Imports ``datasets/prepare_<name>.py``."""
    path = Path(__file__).parents[3] / "datasets" / f"prepare_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(name: str, root: Path, *options: str) -> int:
    """Runs ``datasets/prepare_<name>.py`` on a miniature; returns the exit status."""
    return load_script(name).main(["--root", str(root), "--workers", "0", "--partial", *options])


def check_benchmark(
    root: Path,
    output: Path,
    monkeypatch,
    *,
    train: str,
    test: str,
    labels: Mapping[str, np.ndarray],
    definition: Definition,
) -> None:
    """Trains one step, evaluates, and compares with what plain NumPy makes of the raw labels.

    Args:
        root: folder of the miniature.
        output: folder for the run.
        monkeypatch: the fixture; sets ``DETECTRON2_DATASETS``.
        train: data set to train on.
        test: data set to evaluate.
        labels: for every image of both sets, by ``image_id``, the class indices (H, W) that its pixels have,
            255 for none; derived by the test from what it wrote, without the package.
        definition: the classes.
    """
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    classes = len(definition.classes)
    records = {name: DatasetCatalog.get(name) for name in (train, test)}
    for name, entries in records.items():
        reader = label_reader_for(name)
        for record in entries:
            np.testing.assert_array_equal(reader(record["sem_seg_file_name"]), labels[record["image_id"]])
            _check_image(record["file_name"])
    assert {record["image_id"] for entries in records.values() for record in entries} == set(labels)

    cfg = _tiny_cfg(train, test, classes, output)
    check_datasets(cfg)
    trainer = Trainer(cfg)
    assert trainer.train()[test]["sem_seg"]["pACC"] < 100
    assert trainer.completed_steps == 1 and not trainer.training_step.skipped_steps
    # After one step every pixel is the same class; a classifier that is drawn anew tells more apart.
    classifier = trainer.model.sem_seg_head[-1]
    torch.nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(classifier.bias)
    scores = trainer.evaluate()[test]["sem_seg"]

    confusion = np.zeros((classes, classes), np.int64)
    for record in records[test]:
        predicted = _predict(trainer.model, record["file_name"])
        label = labels[record["image_id"]]
        for truth, guess in zip(label[label != 255], predicted[label != 255], strict=True):
            confusion[truth, guess] += 1
    right, of_class, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    union = of_class + given - right
    iou = right[of_class > 0] / union[of_class > 0]
    assert (of_class > 0).sum() > 1 and (given > 0).sum() > 1 and iou.max() > 0, (
        "the check would prove nothing"
    )
    np.testing.assert_allclose(scores["mIoU"], 100 * iou.mean(), rtol=1e-9)
    np.testing.assert_allclose(
        scores["mIoU_predicted"], 100 * (right[union > 0] / union[union > 0]).mean(), rtol=1e-9
    )
    np.testing.assert_allclose(scores["pACC"], 100 * right.sum() / confusion.sum(), rtol=1e-9)


def _check_image(path: str) -> None:
    """The package shows an image as Pillow does (decoders round differently)."""
    with Image.open(path) as image:
        shown = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    ours = read_image(path)
    assert ours.shape == shown.shape
    assert np.abs(ours.astype(int) - shown).mean() < 3


def _tiny_cfg(train: str, test: str, classes: int, output: Path):
    cfg = get_regseg_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(output), 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", toys.ToySegmentor.__name__
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    cfg.INPUT.CROP.SIZE = [24, 32]
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 1
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def _predict(model: torch.nn.Module, path: str) -> np.ndarray:
    image = torch.from_numpy(read_image(path).transpose(2, 0, 1).copy())
    model.eval()
    with torch.no_grad():
        return model([{"image": image}])[0]["sem_seg"].argmax(dim=0).numpy()
