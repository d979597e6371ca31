"""A Detectron2 project of one's own with CAR and PNE; Detectron2's own DefaultTrainer trains it.

Run it with ``python examples/detectron2_project/train.py --steps 20``; it draws its own images.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng
from PIL import Image
from segmentor import MyRegularizedSegmentor

from regseg_d2.config import add_regseg_config

NUM_CLASSES = 5


def write_dataset(folder: Path) -> list[dict[str, Any]]:
    """Images of fields whose brightness is their class, and the records that Detectron2's mapper reads."""
    records = []
    for number in range(8):
        random = np.random.default_rng(number)
        labels = random.integers(0, NUM_CLASSES, (2, 2)).repeat(32, 0).repeat(32, 1)
        image = 50 * labels[..., None] + random.integers(0, 20, (64, 64, 3))
        files = {"file_name": folder / f"{number}.png", "sem_seg_file_name": folder / f"{number}_labels.png"}
        for path, array in zip(files.values(), (image, labels), strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        records.append({name: str(path) for name, path in files.items()} | {"height": 64, "width": 64})
    return records


def main(steps: int, folder: Path) -> None:
    """Trains for some steps, and prints the losses of each."""
    records = write_dataset(folder)
    DatasetCatalog.register("fields", lambda: records)
    MetadataCatalog.get("fields").set(stuff_classes=list("abcde"), ignore_label=255)

    cfg = get_cfg()
    add_regseg_config(cfg)  # adds MODEL.REGULARIZERS and others, and changes no key of Detectron2
    cfg.MODEL.META_ARCHITECTURE = MyRegularizedSegmentor.__name__
    cfg.MODEL.REGULARIZERS.NAMES = ["CAR", "PNE"]
    cfg.MODEL.REGULARIZERS.PNE.WEIGHT = 0.5
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.NORM = "cpu", "", "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("fields",), ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.DATALOADER.NUM_WORKERS = (64,), 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, steps
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 0.01, 0
    cfg.SEED, cfg.OUTPUT_DIR = 1, str(folder / "output")

    seed_all_rng(cfg.SEED)  # as default_setup does; a trainer alone does not
    trainer = DefaultTrainer(cfg)
    trainer.train()
    losses = {name: trainer.storage.history(name) for name in trainer.storage.latest() if "loss_" in name}
    for step in range(steps):
        print(f"step {step}:", {name: round(loss.values()[step][0], 4) for name, loss in losses.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    with tempfile.TemporaryDirectory() as name:
        main(parser.parse_args().steps, Path(name))
