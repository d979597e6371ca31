"""Loading without running code, writing whole, and reporting what did not fit."""

import io
import os
import pickle

import pytest
import torch
from torch import nn

from regseg_d2.engine.checkpoint import SafeCheckpointer, load_file, weights_hash
from regseg_d2.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, classes: int = 3, regularized: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.predictor = nn.Conv2d(4, classes, 1)
        if regularized:
            self.regularizers = nn.ModuleDict({"car": nn.Linear(2, 2)})


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".pyth"])
@pytest.mark.parametrize("plain_pickle", [False, True])
def test_malicious_files_are_refused_and_their_code_does_not_run(tmp_path, ending, plain_pickle):
    marker, path = tmp_path / "the code ran", tmp_path / f"evil{ending}"
    content = {"model": {}, "model_state": {}, "extra": Malicious(marker)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"Refused.*evil{ending}.*--trust-pickle.*MODEL.TRUST_PICKLE"):
        SafeCheckpointer(Net()).load(str(path))
    assert not marker.exists()


def test_trusted_files_are_loaded(tmp_path):
    net, other = Net(), Net()
    path = tmp_path / "old.pth"
    marker = tmp_path / "ran"
    torch.save({"model": net.state_dict(), "extra": Malicious(marker)}, path)
    SafeCheckpointer(other, trust_pickle=True).load(str(path), checkpointables=[])
    assert torch.equal(net.predictor.weight, other.predictor.weight)
    assert marker.exists()
    pkl = tmp_path / "zoo.pkl"
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    pkl.write_bytes(pickle.dumps({"model": weights, "__author__": "somebody"}))
    third = Net()
    SafeCheckpointer(third, trust_pickle=True).load(str(pkl), checkpointables=[])
    assert torch.equal(net.backbone[0].weight, third.backbone[0].weight)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_file_is_an_error_that_names_it(tmp_path, kept):
    path = tmp_path / "cut.pth"
    buffer = io.BytesIO()
    torch.save({"model": Net().state_dict()}, buffer)
    path.write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    with pytest.raises(CheckpointError, match="cut.pth' is damaged"):
        SafeCheckpointer(Net()).load(str(path))


def test_missing_file_lists_what_is_there(tmp_path):
    torch.save({}, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_finl.pth' does not exist.*model_final.pth"):
        SafeCheckpointer(Net()).load(str(tmp_path / "model_finl.pth"))
    with pytest.raises(CheckpointError, match="nor does its folder"):
        load_file(str(tmp_path / "nowhere" / "x.pth"))


def test_not_weights(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"epoch": 3, "state_dict": Net().state_dict()}, path)
    with pytest.raises(CheckpointError, match="no weights where they were expected: epoch, state_dict"):
        SafeCheckpointer(Net()).load(str(path))
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        SafeCheckpointer(Net()).load(str(path))


def test_weights_of_another_network_are_an_error(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"layer1.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"none of its 1 keys.*layer1.weight"):
        SafeCheckpointer(Net()).load(str(path))


def test_save_then_crash_keeps_the_old_checkpoint_and_tag(tmp_path, monkeypatch):
    net = Net()
    checkpointer = SafeCheckpointer(net, str(tmp_path))
    checkpointer.save("model_a", iteration=1)
    before = (tmp_path / "model_a.pth").read_bytes()

    def crash(*paths):
        raise KeyboardInterrupt

    net.predictor.weight.data.zero_()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("model_a")
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("model_b")
    assert (tmp_path / "model_a.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_a.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_a.pth")


def test_untagged_checkpoints_are_not_resumed_from(tmp_path):
    checkpointer = SafeCheckpointer(Net(), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.save("model_best", tag=False)
    assert (tmp_path / "model_best.pth").is_file()
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")


def test_leftovers_of_a_killed_run_are_cleaned(tmp_path):
    leftover = tmp_path / ".model_0000001.pth.abc.partial"
    leftover.write_bytes(b"half")
    SafeCheckpointer(Net(), str(tmp_path), save_to_disk=False)
    assert leftover.exists()  # only the process that writes cleans
    SafeCheckpointer(Net(), str(tmp_path))
    assert not leftover.exists()


def test_fine_tuning_keeps_all_but_the_classifier_and_reports_it_in_one_table(tmp_path, caplog):
    source, target = Net(classes=5), Net(classes=3, regularized=True)
    path = tmp_path / "pretrained.pth"
    state = source.state_dict()
    state["old_head.weight"] = torch.zeros(1)
    torch.save({"model": state}, path)
    before = target.predictor.weight.detach().clone()
    caplog.set_level("INFO")
    SafeCheckpointer(target).load(str(path), checkpointables=[])
    assert torch.equal(source.backbone[0].weight, target.backbone[0].weight)
    assert torch.equal(target.predictor.weight, before)
    table = caplog.text
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    assert lines["loaded"].split()[1] == "7"  # convolution 2, batch norm 5
    assert "2  regularizers.car (2)" in lines["new (in the model only)"]
    assert "1  old_head (1)" in lines["dropped (in the file only)"]
    assert "predictor.weight: (5, 4, 1, 1) in the file, (3, 4, 1, 1) in the model" in table


def test_a_backbone_that_hardly_fits_is_said(tmp_path, caplog):
    path = tmp_path / "half.pth"
    state = Net().state_dict()
    torch.save({"model": {"backbone.0.weight": state["backbone.0.weight"]}}, path)
    SafeCheckpointer(Net()).load(str(path), checkpointables=[])
    assert "Only 1 of the backbone's 6 tensors are in" in caplog.text


def test_evaluation_needs_every_key_but_the_regularizers(tmp_path):
    path = str(tmp_path / "model.pth")
    torch.save({"model": Net(regularized=True).state_dict()}, path)
    SafeCheckpointer(Net()).load_for_evaluation(path)
    torch.save({"model": Net().state_dict()}, path)
    SafeCheckpointer(Net(regularized=True)).load_for_evaluation(path)
    state = Net().state_dict()
    del state["backbone.1.running_mean"]
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*backbone.1"):
        SafeCheckpointer(Net()).load_for_evaluation(path)
    torch.save({"model": Net(classes=4).state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*predictor.weight: \(4, 4"):
        SafeCheckpointer(Net()).load_for_evaluation(path)
    with pytest.raises(CheckpointError, match="no weights to evaluate"):
        SafeCheckpointer(Net()).load_for_evaluation("")


@pytest.mark.parametrize("saved_with", [False, True])
def test_resuming_needs_the_same_regularizers(tmp_path, saved_with):
    SafeCheckpointer(Net(regularized=saved_with), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError, match="(?s)these regularizers.*MODEL.WEIGHTS .*no --resume"):
        SafeCheckpointer(Net(regularized=not saved_with), str(tmp_path)).resume_or_load("", resume=True)


def test_resuming_from_bare_weights_is_an_error(tmp_path):
    SafeCheckpointer(Net(), str(tmp_path)).save("model_final")
    checkpointer = SafeCheckpointer(Net(), str(tmp_path), trainer=nn.Identity())
    with pytest.raises(CheckpointError, match="has no 'trainer' in it.*MODEL.WEIGHTS"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.load(str(tmp_path / "model_final.pth"), checkpointables=[])  # usable after the error


def test_hash_follows_inference_weights_alone():
    net = Net(regularized=True)
    first = weights_hash(net.state_dict())
    net.regularizers["car"].weight.data += 1
    assert weights_hash(net.state_dict()) == first
    bare = Net()
    bare.load_state_dict(net.state_dict(), strict=False)
    assert weights_hash(bare.state_dict()) == first
    bare.backbone[1].running_mean += 1e-6
    assert weights_hash(bare.state_dict()) != first
    assert weights_hash({"x": torch.zeros(2, dtype=torch.bfloat16)}) != weights_hash({"x": torch.zeros(2)})
