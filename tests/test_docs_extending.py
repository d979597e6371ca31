"""The example of docs/extending.md: run as it stands there, and compared with a slow computation."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from regseg_d2.config.files import load_config
from regseg_d2.engine.optim import build_optimizer
from regseg_d2.engine.step import TrainingStep
from regseg_d2.engine.trainer import Trainer
from regseg_d2.regularizers import REGULARIZER
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL
)
KEY = "loss_center_loss_pull"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The first block as a module; its class is taken out of the registry again."""
    path = tmp_path_factory.mktemp("docs") / "center_loss_of_the_docs.py"
    path.write_text(BLOCKS[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del REGULARIZER._obj_map["CenterLoss"], sys.modules[path.stem]


def make_cfg(example, names=("CenterLoss",), **keys):
    cfg = small_cfg("FCN-linear", names)
    section = cfg.MODEL.REGULARIZERS.CenterLoss  # made from the constructor
    for key, value in keys.items():
        section[key] = value
    return cfg


def make_model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def record(model, batch, forward=None):
    """Result of a forward (or what else runs one), the feature before the dropout, and its labels."""
    seen = []
    handle = model.sem_seg_head.dropout.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    result = (forward or model)(batch)
    handle.remove()
    targets = torch.stack([sample["sem_seg"] for sample in batch])
    height, width = seen[0].shape[-2:]
    rows = [(2 * i + 1) * targets.shape[1] // (2 * height) for i in range(height)]
    columns = [(2 * j + 1) * targets.shape[2] // (2 * width) for j in range(width)]
    return result, seen[0].double(), targets[:, rows][:, :, columns]


def slow_loss(feature, labels, centers):
    """Mean over the pixels of classes with a center of the mean over channels of the squared difference."""
    terms = []
    for n, i, j in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        center = centers.get(labels[n, i, j].item())
        if center is not None:
            terms.append(((feature[n, :, i, j] - center) ** 2).mean())
    return torch.stack(terms).mean() if terms else torch.tensor(0.0, dtype=torch.float64)


def slow_update(feature, labels, centers, decay):
    for k in range(NUM_CLASSES):
        pixels = feature.permute(0, 2, 3, 1)[labels == k]
        if len(pixels):
            mean = pixels.mean(0)
            centers[k] = decay * centers[k] + (1 - decay) * mean if k in centers else mean


def test_the_page_has_three_blocks_and_the_first_is_short():
    assert len(BLOCKS) == 3
    body = BLOCKS[0][BLOCKS[0].index("@REGULARIZER") :]
    assert 30 <= len([line for line in body.splitlines() if line.strip()]) <= 50


def test_losses_are_those_of_a_slow_computation(example):
    model = make_model(make_cfg(example, WEIGHT=0.3, DECAY=0.6))
    centers = {}
    for step in range(3):
        batch = small_batch(seed=step)
        batch[0]["sem_seg"][:32, :32] = IGNORE
        losses, feature, labels = record(model, batch)
        expected = 0.3 * slow_loss(feature, labels, centers)
        assert losses[KEY].item() == pytest.approx(expected.item(), rel=1e-5)
        assert (losses[KEY].item() > 0) == (step > 0)
        assert (labels == IGNORE).any()
        slow_update(feature, labels, centers, decay=0.6)
        for k, center in centers.items():
            torch.testing.assert_close(
                model.regularizers["CenterLoss"].ema.centers[k].double(), center, rtol=1e-4, atol=1e-6
            )
    assert len(centers) > 2


def test_it_trains_one_step(example):
    cfg = make_cfg(example, WEIGHT=10.0)
    model = make_model(cfg).train()
    centers = {}
    _, feature, labels = record(model, small_batch(seed=1))
    slow_update(feature, labels, centers, decay=0.9)
    step = TrainingStep(model, build_optimizer(cfg, model))
    before = model.backbone.network.conv1[0].weight.detach().clone()
    with EventStorage() as storage:
        storage.iter = cfg.MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD - 1
        result, feature, labels = record(model, small_batch(seed=2), lambda batch: step.run(iter([batch])))
    assert not result.skipped
    assert result.losses[KEY] == pytest.approx(10.0 * slow_loss(feature, labels, centers).item(), rel=1e-5)
    slow_update(feature, labels, centers, decay=0.9)
    assert storage.latest()["center_loss/classes_seen"][0] == len(centers)
    assert not torch.equal(before, model.backbone.network.conv1[0].weight)


@pytest.mark.parametrize("labels", ["void", "one_class"])
def test_degenerate_batches(example, labels):
    model = make_model(make_cfg(example))
    model(small_batch())
    loss = model(small_batch(labels=labels))[KEY]
    assert torch.isfinite(loss)
    assert (loss == 0) == (labels == "void")
    loss.backward()


def test_it_works_at_another_place_and_beside_another_method(example):
    cfg = make_cfg(example, ["CAR", "CenterLoss", "CenterLoss@aux"])
    model = make_model(cfg)
    model(small_batch())
    losses = model(small_batch())
    assert losses[KEY] > 0
    assert losses["loss_center_loss@aux_pull"] > 0
    assert losses["loss_car_intra_c2p"] > 0


def test_the_script_of_the_page_makes_a_trainer(example, tmp_path, monkeypatch):
    overrides = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", ""]
    trained = []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.append(self))
    monkeypatch.chdir(ROOT)
    names = {
        "load_config": lambda path: load_config(path, overrides),
        "Trainer": Trainer,
    }
    exec(BLOCKS[1], names)
    (trainer,) = trained
    assert sorted(trainer.model.regularizers) == ["CAR", "CenterLoss"]
