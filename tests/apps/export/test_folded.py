"""Folded weights load into a config of their own, and evaluate as the unfolded ones do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regseg_d2.apps.export.description import read_description
from regseg_d2.apps.export.exporting import Request, export_network
from regseg_d2.apps.export.formats import ExportError
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.engine.trained_model import load_trained_model
from tests.apps.export.test_export import saved
from tests.helpers import small_cfg

ROOT = Path(__file__).parents[3]


def folding_cfg(projection, **keys):
    """CAR's head with a linear convolution, and an auxiliary head that inference does not need."""
    keys = {"SEM_SEG_HEAD__PROJECTION": projection, **keys}
    return small_cfg("FCN-linear", ["CAR"], **keys)


def with_bias(model):
    torch.nn.init.normal_(model.sem_seg_head.projection.linear.bias, std=0.05)


def export(config, path, **request):
    said = []
    export_network(
        Request(
            config_file=config, output=path, format="checkpoint", check_sizes=((64, 96), (70, 50)), **request
        ),
        say=said.append,
    )
    return load_config(str(path.with_suffix(".yaml"))), said


@pytest.mark.parametrize("projection, left", [("LinearConvBlock", "ConvBlock"), ("NormLinear", "Norm")])
def test_folded_checkpoint_is_the_network_without_the_linear_convolution(projection, left, tmp_path):
    config = saved(folding_cfg(projection), tmp_path, with_bias)
    cfg, said = export(config, tmp_path / "folded.safetensors")
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (head.PROJECTION, head.AUX.IN_FEATURE, list(cfg.MODEL.REGULARIZERS.NAMES)) == (left, "", [])
    folded, trained = load_trained_model(cfg).model, load_trained_model(load_config(config)).model
    names = [name for name, _ in folded.named_parameters()]
    assert not any("linear" in name or "auxiliary" in name or "regularizers" in name for name in names)
    batch = [{"image": torch.rand(3, 70, 50) * 255}]
    expected = trained(batch)[0]["sem_seg"]
    torch.testing.assert_close(folded(batch)[0]["sem_seg"], expected, rtol=1e-4, atol=1e-4)
    assert "checkpoint beside torch" in said[0]
    assert read_description(tmp_path / "folded.safetensors")["classes"][0]


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["LinearConvBlock", "NormLinear"])
def test_eval_only_gives_the_miou_of_the_unfolded_network(projection, tmp_path):
    config = saved(folding_cfg(projection), tmp_path, with_bias)
    export(config, tmp_path / "folded.safetensors")
    scores = {}
    for name, file in (("unfolded", config), ("folded", tmp_path / "folded.yaml")):
        tool = [
            sys.executable,
            str(ROOT / "tools" / "train_net.py"),
            "--config-file",
            str(file),
            "--eval-only",
        ]
        done = subprocess.run(
            [*tool, "OUTPUT_DIR", str(tmp_path / name)], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / name / "evaluation" / "cooccurrence_val.json").read_text())
        predicted = [row["predicted_pixels"] for row in report["classes"]]
        assert sum(pixels > 0.01 * sum(predicted) for pixels in predicted) > 2  # else this would mean little
        scores[name] = [report["metrics"]["mIoU"], *(100 * pixels / sum(predicted) for pixels in predicted)]
    assert scores["folded"] == pytest.approx(scores["unfolded"], abs=1e-2)


def test_what_cannot_be_folded_is_refused(tmp_path):
    group_norm = folding_cfg(
        "LinearConvBlock",
        SEM_SEG_HEAD__CONVS_DIM=32,
        SEM_SEG_HEAD__CONTEXT_CHANNELS=32,
        SEM_SEG_HEAD__NORM="GN",
    )
    group_norm.MODEL.SEM_SEG_HEAD.AUX.CHANNELS = 32
    config = saved(group_norm, tmp_path, with_bias)
    with pytest.raises(ExportError, match=r"projection\.conv\.bias: .*NORM is 'GN'"):
        export(config, tmp_path / "a.safetensors")
    config = saved(folding_cfg("LinearConvBlock", SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=3), tmp_path)
    with pytest.raises(ConfigError, match="cannot be folded.*PROJECTION_KERNEL_SIZE"):
        export(config, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="--without-normalization"):
        export(config, tmp_path / "c.safetensors", normalizes=False)
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("[abc].yaml"))


def test_a_larger_kernel_is_exported_with_its_linear_convolution(tmp_path):
    config = saved(
        folding_cfg("LinearConvBlock", SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=3), tmp_path, with_bias
    )
    request = Request(
        config_file=config, output=tmp_path / "out.ts", format="torchscript", check_sizes=((64, 96),)
    )
    export_network(request, say=lambda line: None)
    names = [name for name, _ in torch.jit.load(tmp_path / "out.ts").named_parameters()]
    assert any("projection.linear" in name for name in names)
