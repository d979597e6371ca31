"""A network, a data set and a trainer that are small enough to train in a test."""

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional

from regseg_d2.config import get_regseg_cfg
from regseg_d2.engine.trainer import Trainer
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.state.memory_bank import MemoryBank

CLASSES = ["sky", "road", "car"]
IGNORE = 255
SIZE = (12, 16)


class Killed(BaseException):
    """Stands for kill -9: no handler of errors sees it."""


def train_or_die(trainer, kill_at=None):
    """Trains, to step ``kill_at`` as a process does that is killed there; returns the trainer."""
    step = trainer.run_step

    def run_or_die():
        if trainer.iter == kill_at:
            raise Killed
        step()

    trainer.run_step = run_or_die
    if kill_at is None:
        trainer.train()
    else:
        with pytest.raises(Killed):
            trainer.train()
    return trainer


class ToyMemory(nn.Module):
    """What a regularizer may own: a parameter, and a buffer that every training step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.steps += 1
        return self.scale * logits.square().mean()


@META_ARCH_REGISTRY.register()
class ToySegmentor(nn.Module):
    """Convolution, batch norm, dropout, classifier; Detectron2's inputs and outputs."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.device = torch.device(cfg.MODEL.DEVICE)
        norm = nn.BatchNorm2d(4) if cfg.MODEL.NORM != "" else nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU())
        dropout = cfg.MODEL.SEM_SEG_HEAD.DROPOUT
        self.sem_seg_head = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(4, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)
        )
        if cfg.MODEL.REGULARIZERS.NAMES:
            self.regularizers = nn.ModuleDict({"memory": ToyMemory()})
        self.to(self.device)

    def forward(self, inputs: list[dict]):
        images = torch.stack([sample["image"].float() / 255 for sample in inputs]).to(self.device)
        logits = self.sem_seg_head(self.backbone(images))
        if not self.training:
            return [{"sem_seg": image_logits} for image_logits in logits]
        targets = torch.stack([sample["sem_seg"] for sample in inputs]).to(self.device)
        losses = {"loss_sem_seg": functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE)}
        if hasattr(self, "regularizers"):
            losses["loss_memory"] = 0.01 * self.regularizers["memory"](logits)
        if any(sample.get("poison") for sample in inputs):
            losses["loss_sem_seg"] = losses["loss_sem_seg"] * float("nan")
        return losses


class BankedSegmentor(ToySegmentor):
    """Pushes a row of each image to a bank in every training forward, also in one that is not finite."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.bank = MemoryBank(2, 3, 4)

    def forward(self, inputs: list[dict]):
        losses = super().forward(inputs)
        rows = torch.stack([sample["image"].float().flatten()[:4] for sample in inputs])
        classes = rows[:, 0].long() % 2
        if any(sample.get("poison") for sample in inputs):
            rows = rows * float("nan")
        self.bank.push(rows, classes, torch.ones(len(rows), dtype=torch.bool))
        return losses


def toy_cfg(output_dir, **overrides) -> CfgNode:
    """The defaults for the toy network; overrides are dotted keys with ``__`` for the dots."""
    cfg = get_regseg_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ToySegmentor"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.3
    cfg.DATASETS.TRAIN = ("toy_train",)
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.TEST.NUM_IMAGES_SHOWN = cfg.TEST.NUM_PIXELS_SHOWN = 0
    cfg.LOG_PERIOD = 1
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output_dir)
    for key, value in overrides.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def toy_sample(number: int) -> dict:
    """A training sample that is a function of its number."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    label = (image.float().mean(dim=0) / 256 * len(CLASSES)).long().clamp(max=len(CLASSES) - 1)
    label[0] = IGNORE
    return {"image": image, "sem_seg": label, "height": SIZE[0], "width": SIZE[1]}


class ToyBatches:
    """Endless batches; those of step ``start_iter`` come first."""

    def __init__(self, cfg: CfgNode, seed: int, start_iter: int, poisoned_steps=()) -> None:
        self.size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUM_STEPS
        self.per_step = cfg.SOLVER.IMS_PER_BATCH
        self.number = start_iter * self.per_step
        self.seed = seed
        self.poisoned_steps = set(poisoned_steps)

    def __iter__(self):
        return self

    def __next__(self) -> list[dict]:
        # A loader without workers draws from the global generators; the run must not notice.
        torch.rand(3)
        step = self.number // self.per_step
        batch = [toy_sample(1000 * self.seed + self.number + i) for i in range(self.size)]
        batch[0]["poison"] = step in self.poisoned_steps
        self.number += self.size
        return batch


class ToyTrainer(Trainer):
    """Trains on ToyBatches; ``poisoned_steps`` have a loss that is NaN."""

    poisoned_steps: tuple = ()

    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        return ToyBatches(cfg, seed, start_iter, cls.poisoned_steps)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[record] for record in DatasetCatalog.get(dataset_name)]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, provenance, num_images_shown=0):
        return StreamingSemSegEvaluator(
            dataset_name,
            cfg.OUTPUT_DIR,
            label_reader=np.load,
            provenance=provenance,
            num_images_shown=num_images_shown,
        )


def register_toy_test_set(folder, name: str, count: int = 3) -> str:
    """Registers ``count`` images with labels as .npy files; returns the name."""
    records = []
    for number in range(count):
        sample = toy_sample(90_000 + number)
        path = folder / f"{name}_{number}.npy"
        np.save(path, sample["sem_seg"].numpy().astype(np.int32))
        records.append(
            {
                "image": sample["image"],
                "file_name": str(path.with_suffix(".png")),
                "sem_seg_file_name": str(path),
                "height": SIZE[0],
                "width": SIZE[1],
            }
        )
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=IGNORE, evaluator_type="sem_seg")
    return name


def same_state(first: dict, second: dict) -> bool:
    """Whether two nested states hold the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_state(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_state, first, second))
    return first == second
