"""Python of the pages that have no test of their own, run as it stands there."""

import shutil
import textwrap

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor, build_model
from safetensors.torch import load_file, save_file

from regseg_d2.apps.explore.networks import LabelledPicture
from regseg_d2.config import get_regseg_cfg
from regseg_d2.data.augmentations import AUGMENTATION
from regseg_d2.segmentor.meta_architecture import RegularizationMixin
from tests.engine.toys import ToyTrainer, toy_cfg
from tests.helpers import small_batch, small_cfg
from tests.pages import ROOT, codes_of


def block(page, words):
    """The one block of a page with these words."""
    (found,) = [code for code in codes_of(ROOT / "docs" / page) if code.language and words in code.text]
    return found


def run(page, words, **names):
    """The names that there are when a block has run."""
    code = block(page, words)
    exec(compile(textwrap.dedent(code.text), code.page, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _registries_stay():
    registries = META_ARCH_REGISTRY._obj_map, AUGMENTATION._obj_map
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_the_files_that_compose_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "_base_", "configs/_base_")
    (tmp_path / "configs" / "example").mkdir()
    leaf = block("configuration.md", "# configs/example/leaf.yaml").text
    (tmp_path / "configs" / "example" / "leaf.yaml").write_text(leaf)
    cfg = run("configuration.md", 'load_config(\n    "configs/example/leaf.yaml"')["cfg"]
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.02, 1000)  # the file, the command line
    assert cfg.INPUT.CROP.SIZE == [288, 288] and cfg.OUTPUT_DIR == "output/example/leaf"  # a base, the folder


def test_a_data_set_is_registered():
    run("datasets.md", "DatasetSpec(")
    assert {"farm_train", "farm_val"} <= {*DatasetCatalog.list()}
    assert MetadataCatalog.get("farm_val").stuff_classes == ["soil", "crop", "weed"]


def test_a_predictor_of_a_model_and_tensors():
    cfg, image = small_cfg(), small_batch(1, size=(48, 80))[0]["image"]
    names = run("evaluation.md", "build_predictor", cfg=cfg, model=build_model(cfg).eval(), image=image)
    assert names["labels"].shape == (48, 80) and names["labels"].dtype == torch.uint8
    assert torch.equal(names["labels"].long(), names["scores"].argmax(0))


@pytest.mark.slow
def test_a_network_of_ones_own_is_explored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential()
    network.add_module("encoder", torch.nn.Conv2d(3, 8, 3, padding=1))
    network.add_module("segmentation_head", torch.nn.Sequential(torch.nn.Conv2d(8, 2, 1)))
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(3):
        label = np.kron(rng.permutation(2)[None], np.ones((16, 8), np.int64))
        pixels = np.repeat(label[..., None] * 150 + 50, 3, axis=2).astype(np.uint8)
        pictures.append(LabelledPicture(f"{number}.png", pixels, label))
    to_input = lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255  # noqa: E731
    names = {"network": network, "to_input": to_input, "classes": ["dark", "bright"], "pictures": pictures}
    run("figures.md", "look_through", **names)
    assert "bright" in (tmp_path / "explored" / "page.html").read_text(encoding="utf-8")


class Poisoned(ToyTrainer):
    """A step is not finite; samples have names of files, as those of data sets on disk have."""

    poisoned_steps = (3,)

    @classmethod
    def build_train_loader(cls, cfg, *, seed, start_iter):
        for batch in super().build_train_loader(cfg, seed=seed, start_iter=start_iter):
            yield [{**sample, "file_name": f"{number}.jpg"} for number, sample in enumerate(batch)]


def test_a_batch_that_was_not_finite_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = Poisoned(toy_cfg(tmp_path / "output"))
    trainer.resume_or_load(resume=False)
    trainer.train()
    kept = tmp_path / "output" / "nan_batches" / "0000003_rank0.pth"
    kept.rename(kept.with_name("0001234_rank0.pth"))
    capsys.readouterr()
    dump = run("reliability.md", "nan_batches")["dump"]
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("3 7 losses ") and "nan" in rest[0]
    samples = [sample["file_name"] for one in dump["passes"] for sample in one["samples"]]
    assert [line.split()[0] for line in rest if ".jpg" in line] == samples and samples


def test_the_classes_of_the_page_for_plug_ins(tmp_path):
    names = {"META_ARCH_REGISTRY": META_ARCH_REGISTRY, "SemanticSegmentor": SemanticSegmentor}
    mine = run(
        "extending.md",
        "MyRegularizedSegmentor",
        RegularizationMixin=RegularizationMixin,
        MySegmentor=SemanticSegmentor,
        **names,
    )["MyRegularizedSegmentor"]
    assert META_ARCH_REGISTRY.get("MyRegularizedSegmentor").main_classifier == mine.main_classifier

    pod = run("extending.md", "PodSegmentor", load_file=load_file, **names)["PodSegmentor"]
    cfg, file = get_regseg_cfg(), str(tmp_path / "pod.safetensors")
    save_file({"weight": torch.arange(3.0)}, file)
    cfg.POD = type(cfg)({"FILE": ""})
    assert pod.initial_weights(None, cfg) is None
    cfg.POD.FILE = file
    name, tensors = pod.initial_weights(None, cfg)
    assert name == file and torch.equal(tensors["weight"], torch.arange(3.0))

    run("extending.md", "RandomInvert", AUGMENTATION=AUGMENTATION, T=T, np=np)
    invert, image = AUGMENTATION.get("RandomInvert")(), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.random.seed(0)
    seen = [invert.get_transform(image).apply_image(image) for _ in range(20)]
    assert {bool(np.array_equal(one, 255 - image)) for one in seen} == {True, False}
    assert all(np.array_equal(one, image) or np.array_equal(one, 255 - image) for one in seen)
