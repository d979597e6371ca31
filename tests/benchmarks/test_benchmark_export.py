"""The table of exported networks: a row a format, and one for what cannot be exported."""

import torch

from benchmarks import export
from regseg_d2.apps.export.formats import FORMATS, ExportError, TorchScript
from regseg_d2.apps.export.network import ExportedNetwork
from regseg_d2.segmentor.export import inference_model
from tests.helpers import small_cfg


class Impossible(TorchScript):
    def write(self, *args, **kwargs):
        raise ExportError("torch cannot")


def test_a_row_a_format(monkeypatch, capsys):
    monkeypatch.setattr(export, "FORMATS", {"torchscript": FORMATS["torchscript"], "other": Impossible()})
    monkeypatch.setattr(export, "CASES", (export.Case("tiny", ""), export.Case("tiny, one size", "", False)))
    monkeypatch.setattr(export, "SIZES", ((64, 96), (50, 70)))
    monkeypatch.setattr(export, "load_config", lambda *args: small_cfg("FCN"))
    export.run(1, ["TINY"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("torchscript")]
    assert len(rows) == 2 and all(float(row[1]) == 0 and row[2] == "100.0000%" for row in rows)
    assert sum("no: torch cannot" in line for line in lines) == 2
    export.run(1, ["nothing of that name"])
    assert "torchscript" not in capsys.readouterr().out


def test_random_networks_have_more_than_one_label(monkeypatch):
    monkeypatch.setattr(export, "load_config", lambda *args: small_cfg("FCN"))
    network = export._random_network(export.Case("tiny", ""))
    assert not any(parameter.requires_grad for parameter in inference_model(network).parameters())
    labels = ExportedNetwork(network, "labels")(torch.rand(1, 3, 64, 96) * 255)
    assert len(labels.unique()) > 1
