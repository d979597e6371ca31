"""Networks of every kind in a bundle: what the head or the backbone needs of a config beside the weights."""

import json

import numpy as np
import pytest
import torch

from regseg_d2 import Predictor
from regseg_d2.apps.bundle.build import BundleOptions, write_bundle
from regseg_d2.common.files import write_text
from regseg_d2.config.files import format_config, load_config
from regseg_d2.segmentor.build import build_model
from tests.helpers import small_cfg
from tests.huggingface_networks import huggingface_cfg

IMAGE = np.random.default_rng(3).integers(0, 256, (61, 77, 3), np.uint8)
# Detectron2's DeepLab heads take multiples of the training crop.
CROPS = np.random.default_rng(3).integers(0, 256, (64, 128, 3), np.uint8)
OCR = {"SEM_SEG_HEAD__CONTEXT": "OCR", "SEM_SEG_HEAD__AUX__IN_FEATURE": "res3"}
MDRL = {
    "SEM_SEG_HEAD__AUGMENT": "MDRL",
    "REGULARIZERS__MDRL__CHANNELS": 8,
    "SEM_SEG_HEAD__AUX__IN_FEATURE": "res3",
}
NETWORKS = {
    "DeepLabV3+ of Detectron2": lambda: small_cfg("DeepLabV3Plus", ["PNE"]),
    "FPN of Detectron2": lambda: small_cfg("SemSegFPN"),
    "OCR reads the auxiliary head": lambda: small_cfg("FCN", ["CAR"], **OCR),
    "MDRL's stage": lambda: small_cfg("FCN", ["CAR", "CAR@aux", "MDRL"], **MDRL),
    "synchronised norm": lambda: small_cfg("FCN", NORM="SyncBN"),
    "frozen norm, channels last": lambda: small_cfg("FCN", NORM="FrozenBN", CHANNELS_LAST=True),
    "transformers, by family": lambda: huggingface_cfg("segformer", ["CAR"]),
    "transformers, masks": lambda: huggingface_cfg("mask2former"),
}


def run_of(cfg, folder):
    """A run's folder with random weights."""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 10
    cfg.DATASETS.TEST = ("cooccurrence_val",)
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    write_text(folder / "config.yaml", format_config(cfg))
    cfg = load_config(str(folder / "config.yaml"))
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.mark.parametrize("kind", NETWORKS)
def test_scores_are_the_runs(tmp_path, kind):
    run = run_of(NETWORKS[kind](), tmp_path / "run")
    write_bundle(run, tmp_path / "bundle", BundleOptions(), say=lambda line: None)
    image = CROPS if kind == "DeepLabV3+ of Detectron2" else IMAGE
    expected = Predictor.from_run(run)(image, scores=True)
    got = Predictor.from_bundle(tmp_path / "bundle")(image, scores=True, confidence=True)
    assert len(np.unique(got.scores)) > 1000
    assert np.abs(got.scores.sum(axis=0) - 1).max() < 1e-5
    assert np.abs(got.confidence - got.scores.max(axis=0)).max() < 1e-6
    assert np.array_equal(got.labels, expected.labels) and np.array_equal(got.scores, expected.scores)
    names = load_config(str(tmp_path / "bundle" / "config.yaml")).MODEL.REGULARIZERS.NAMES
    assert list(names) == (["MDRL"] if kind == "MDRL's stage" else [])


def test_a_network_of_the_hub_brings_its_config_along(tmp_path, monkeypatch):
    """The run names a folder, as it would a repository; the bundle does without it."""
    network = build_model(huggingface_cfg("segformer")).network
    network.config.save_pretrained(tmp_path / "published")
    cfg = huggingface_cfg("segformer")
    cfg.MODEL.HUGGINGFACE.MODEL_TYPE, cfg.MODEL.HUGGINGFACE.NAME = "", str(tmp_path / "published")
    cfg.MODEL.HUGGINGFACE.CONFIG.clear()
    cfg.MODEL.HUGGINGFACE.CONFIG["decoder_hidden_size"] = 24
    run = run_of(cfg, tmp_path / "run")
    write_bundle(run, tmp_path / "bundle", BundleOptions(), say=lambda line: None)
    expected = Predictor.from_run(run)(IMAGE, scores=True)
    (tmp_path / "published").rename(tmp_path / "gone")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    got = Predictor.from_bundle(tmp_path / "bundle")(IMAGE, scores=True)
    assert np.array_equal(got.scores, expected.scores)
    config = json.loads((tmp_path / "bundle" / "huggingface" / "config.json").read_text())
    assert config["decoder_hidden_size"] == 24
    for file in ("config.yaml", "README.md"):
        assert str(tmp_path) not in (tmp_path / "bundle" / file).read_text()
