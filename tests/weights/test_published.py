"""Checkpoints of mmsegmentation: converted by the tool, and given to MODEL.WEIGHTS as they are."""

import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.apps.convert_weights import convert_file
from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.engine import checkpoint_loading
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.weights.network import Network
from regseg_d2.weights.published import recognise
from tests.helpers import small_cfg
from tests.weights.published_helpers import (
    FIXTURES,
    HEAD,
    MMSEG_FCN,
    assert_same_weights,
    load_converted,
    load_directly,
    logits_of,
    make_cfg,
    options,
)

TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"


@pytest.fixture(scope="module")
def fixture():
    return torch.load(FIXTURES / "fcn_resnet50_thin.pt", weights_only=True)


@pytest.fixture
def published(fixture, tmp_path):
    """A file as mmsegmentation publishes it."""
    path = tmp_path / "theirs.pth"
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": fixture["state"]}, path)
    return path


def test_converted_and_as_it_is_give_mmsegmentations_logits(fixture, published, tmp_path, caplog):
    converted, text = load_converted(MMSEG_FCN, published, "mmseg", tmp_path, strict=True)
    assert fixture["logits"].std() > 0.1
    torch.testing.assert_close(
        logits_of(converted, fixture["image"]), fixture["logits"], rtol=1e-6, atol=1e-5
    )
    caplog.set_level(logging.INFO)
    directly = load_directly(MMSEG_FCN, published, strict=True)
    assert_same_weights(converted, directly)
    count = len(fixture["state"])
    assert f"'{published}' is a checkpoint of mmsegmentation: {count} of its {count} tensors" in caplog.text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["used"][1] == str(count)
    assert lines["new (in the network only)"][5] == lines["dropped (in the file only)"][5] == "0"
    assert "Backbone: 100.0% of 270 tensors" in text
    assert "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in text
    assert "Warning" not in text


def test_a_head_for_other_classes_keeps_all_but_the_classifiers(fixture, published, tmp_path):
    keys = {**MMSEG_FCN, f"{HEAD}NUM_CLASSES": 4}
    converted, text = load_converted(keys, published, "mmseg", tmp_path)
    assert_same_weights(converted, load_directly(keys, published))
    whole = load_directly(MMSEG_FCN, published).state_dict()
    for name, value in converted.state_dict().items():
        assert "predictor" in name or torch.equal(value, whole[name]), name
    for name in ("sem_seg_head.predictor", "sem_seg_head.auxiliary.predictor"):
        assert f"{name}.bias: (7,) in the file, (4,) in the network: a classifier of other classes" in text
    saved = torch.load(tmp_path / "converted.pth", weights_only=True)["model"]
    assert not any("predictor" in name for name in saved)
    # Which cannot be evaluated.
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*predictor.bias: \(7,\)"):
        load_directly(keys, published, strict=True)


def test_parts_that_only_one_side_has(published, tmp_path):
    keys = {**MMSEG_FCN, f"{HEAD}AUX.IN_FEATURE": ""}
    _, text = load_converted(keys, published, "mmseg", tmp_path)
    assert "auxiliary_head.convs.0.conv: weight (4, 32, 3, 3)" in text
    # To evaluate, an auxiliary head may be left out, and nothing else.
    keys = {**MMSEG_FCN, f"{HEAD}CONCAT_INPUT": False, f"{HEAD}FCN_NUM_CONVS": 1}
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*decode_head.conv_cat.conv"):
        load_directly(keys, published, strict=True)
    keys = {**MMSEG_FCN, f"{HEAD}AUX.IN_FEATURE": ""}
    assert load_directly(keys, published, strict=True).sem_seg_head.auxiliary is None


def test_too_little_of_the_backbone_is_an_error(fixture, tmp_path):
    path, out = tmp_path / "half.pth", tmp_path / "out.pth"
    half = {name: value for name, value in fixture["state"].items() if "layer3" not in name}
    torch.save(half, path)
    with pytest.raises(CheckpointError, match=r"(?s)half.pth'.*of mmsegmentation, has 6\d% of.*at least 90%"):
        convert_file(str(path), str(out), source="mmseg", opts=options(MMSEG_FCN))
    assert not out.exists()
    with pytest.raises(CheckpointError, match="expected at least 90%"):
        load_directly(MMSEG_FCN, path)
    text = convert_file(str(path), str(out), source="mmseg", opts=options(MMSEG_FCN), min_backbone_share=0.6)
    assert "backbone.res4.0.conv1: weight (8, 16, 1, 1)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MODEL.RESNETS.DEPTH": 101}, r"has \d\d% of the backbone's"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 16}, r"has \d\d?% of the backbone's"),
        ({"MODEL.BACKBONE.NAME": "build_mit_backbone"}, r"has 0% of the backbone's"),
        (
            {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.TIMM.NAME": "tf_efficientnet_lite0"},
            r"cannot be loaded into MODEL.BACKBONE.NAME 'build_timm_backbone' \(timm_efficientnet\)",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_an_error(published, tmp_path, change, message):
    keys = {**MMSEG_FCN, **change}
    with pytest.raises(CheckpointError, match=message):
        convert_file(str(published), str(tmp_path / "out.pth"), source="mmseg", opts=options(keys))
    with pytest.raises(CheckpointError, match=message):
        load_directly(keys, published)


def test_pictures_that_are_prepared_otherwise_are_warned_about(published, tmp_path, caplog):
    keys = {**MMSEG_FCN, "INPUT.FORMAT": "BGR"}
    _, text = load_converted(keys, published, "mmseg", tmp_path)
    assert "Warning: The images are not prepared as the checkpoint of mmsegmentation expects" in text
    load_directly(keys, published)
    assert "the config has INPUT.FORMAT BGR" in caplog.text


def test_a_backbone_alone(fixture, tmp_path):
    path = tmp_path / "backbone.pth"
    prefix = "backbone."
    torch.save({k.removeprefix(prefix): v for k, v in fixture["state"].items() if k.startswith(prefix)}, path)
    converted, _ = load_converted(MMSEG_FCN, path, "mmseg", tmp_path)
    directly = load_directly(MMSEG_FCN, path)
    for name, value in directly.backbone.state_dict().items():
        assert torch.equal(value, converted.backbone.state_dict()[name]), name
    assert torch.equal(directly.backbone.stem.conv1.weight, fixture["state"]["backbone.stem.0.weight"])


def test_paths(published, tmp_path):
    with pytest.raises(ConfigError, match="OUT is IN"):
        convert_file(str(published), str(published), source="mmseg", opts=options(MMSEG_FCN))
    with pytest.raises(ConfigError, match="ends with .pth"):
        convert_file(str(published), str(tmp_path / "x.pkl"), source="mmseg", opts=options(MMSEG_FCN))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(published.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged.pth' is damaged"):
        convert_file(str(damaged), str(tmp_path / "x.pth"), source="mmseg", opts=options(MMSEG_FCN))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.pth", "theirs.pth"]


def test_the_command_line(published, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr()

    out = tmp_path / "out.pth"
    config = tmp_path / "config.yaml"
    config.write_text("MODEL:\n  DEVICE: cpu\n")
    changes = options(MMSEG_FCN)
    printed = run("--from", "mmseg", published, out, "--config-file", config, "--list", *changes)
    assert "sem_seg_head.predictor: weight (7, 8, 1, 1), bias (7,)" in printed.out
    assert f"load it with MODEL.WEIGHTS {out}" in printed.out
    with pytest.raises(SystemExit) as exit_:
        run("--from", "mmseg", tmp_path / "none.pth", out, *changes)
    assert exit_.value.code == 2
    assert "Error: The checkpoint" in capsys.readouterr().err


def test_own_checkpoints_are_left_as_they_are(tmp_path, monkeypatch):
    for cfg in (make_cfg(MMSEG_FCN), small_cfg("FCN", ["CAR"]), small_cfg("SemSegFPN"), small_cfg("ASPP")):
        model = build_model(cfg)
        network = Network.of(cfg, model)
        assert recognise(model.state_dict(), network) is None
        backbone = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
        assert recognise(backbone, network) is None

    def refuse(*arguments):
        raise AssertionError("a run that is continued must not be converted")

    cfg = small_cfg("FCN")
    SafeCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model_final")
    monkeypatch.setattr(checkpoint_loading, "convert_if_published", refuse)
    SafeCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).resume_or_load("", resume=True)
    with pytest.raises(AssertionError, match="continued"):
        SafeCheckpointer(build_model(cfg), cfg=cfg).resume_or_load(
            str(tmp_path / "model_final.pth"), resume=False
        )
