"""Files of weights: every kind is read, and no code of theirs runs."""

import argparse
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.reading import load_file, read_weights

WEIGHTS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.zeros(2)}


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "safetensors", "pkl"])
def test_every_kind_of_file(tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(WEIGHTS, str(path))
    elif ending == "pkl":
        path.write_bytes(pickle.dumps({name: value.numpy() for name, value in WEIGHTS.items()}, protocol=2))
    else:
        torch.save(WEIGHTS, path)
    assert same(read_weights(str(path)))


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("model", "state_dict"), ("model_state",)])
def test_weights_are_taken_out_of_what_is_around_them(tmp_path, wrap):
    content = {f"module.{name}": value for name, value in WEIGHTS.items()}
    for key in reversed(wrap):
        content = {key: content, "epoch": 3, "optimizer": {}}
    torch.save(content, tmp_path / "run.pth")
    assert same(read_weights(str(tmp_path / "run.pth")))


def test_values_of_training_programs_are_harmless(tmp_path, monkeypatch):
    """NumPy's numbers and arrays, arguments of a command line, and mmengine's curves, without mmengine."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    source = "class HistoryBuffer:\n    def mean(self): pass\n"
    exec(source, {"__name__": module.__name__}, vars(module))
    history = module.HistoryBuffer
    curve = history()
    curve.values, curve.methods = np.array([0.5, 0.25]), {"mean": history.mean}
    content = {
        "state_dict": WEIGHTS,
        "meta": {"seed": np.int64(7), "palette": np.zeros((2, 3), np.uint8), "names": np.array(["a", "b"])},
        "args": argparse.Namespace(lr=0.1),
        "message_hub": {"log_scalars": {"loss": curve}},
    }
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, "mmengine.logging.history_buffer", module)
        torch.save(content, tmp_path / "run.pth")
    loaded = load_file(str(tmp_path / "run.pth"))
    assert same(loaded["state_dict"])
    assert loaded["meta"]["seed"] == 7
    assert loaded["args"].lr == 0.1
    assert type(loaded["message_hub"]["log_scalars"]["loss"]) is not history


def test_attributes_of_anything_else_are_refused(tmp_path):
    class Reaching:
        def __reduce__(self):
            return (getattr, (np.ndarray, "tofile"))

    torch.save({"state_dict": WEIGHTS, "extra": Reaching()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="Refused to load.*Unsupported attribute 'tofile'"):
        load_file(str(tmp_path / "evil.pth"))


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_code_is_refused_and_does_not_run(tmp_path, ending):
    marker, path = tmp_path / "the code ran", tmp_path / f"evil.{ending}"
    content = {"model": WEIGHTS, "extra": Malicious(marker)}
    if ending == "pkl":
        path.write_bytes(pickle.dumps({**content, "model": {"x": np.zeros(2)}}))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"Refused to load.*open.*--trust-pickle"):
        load_file(str(path))
    assert not marker.exists()
    assert "model" in load_file(str(path), trust_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "exec"])
def test_pickled_arrays_may_name_nothing_else(tmp_path, name):
    path = tmp_path / "x.pkl"
    path.write_bytes(f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(CheckpointError, match=f"Unsupported global: builtins.{name}"):
        load_file(str(path))
    path.write_bytes(b"c_codecs\nencode\n(Va\nVzip\ntR.")
    with pytest.raises(CheckpointError, match="Unsupported encoding 'zip'"):
        load_file(str(path))


@pytest.mark.parametrize("ending", ["pth", "safetensors", "pkl"])
def test_damaged_files(tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:200] if ending != "pkl" else b"\x80\x02}q\x00X")
    with pytest.raises(CheckpointError, match=rf"cut.{ending}' is damaged"):
        load_file(str(path))


def test_files_without_weights(tmp_path):
    path = tmp_path / "x.pth"
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_weights(str(path))
    torch.save({"epoch": 1, "lr": 0.1}, path)
    with pytest.raises(
        CheckpointError, match="no weights where they were expected: epoch, lr are no tensors"
    ):
        read_weights(str(path))
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="it is empty"):
        read_weights(str(path))
    with pytest.raises(CheckpointError, match=r"y.pth' does not exist. In its folder there are: x.pth"):
        read_weights(str(tmp_path / "y.pth"))
