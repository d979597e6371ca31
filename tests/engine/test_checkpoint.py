"""Loading without running code, writing whole, and reporting what did not fit."""

import io
import os
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.common.errors import CheckpointError
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.provenance import weights_hash
from regseg_d2.state.ema_centers import EmaCenters
from regseg_d2.state.memory_bank import MemoryBank
from regseg_d2.weights.reading import load_file
from tests.helpers import small_batch, small_cfg


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
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_history", "last_checkpoint", "model_a.pth"]
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


class Banked(Net):
    """A network whose regularizers have a bank, a moving average and a layer."""

    def __init__(self, bank_size=4, channels=2, classes=3):
        super().__init__(classes)
        contrast = nn.Module()
        contrast.bank = MemoryBank(classes, bank_size, 2)
        contrast.layer = nn.Linear(2, 2)
        car = nn.Module()
        car.ema = EmaCenters(classes, channels, decay=0.5)
        self.regularizers = nn.ModuleDict({"RegionContrast@aux": contrast, "CAR": car})

    def step(self):
        self.regularizers["RegionContrast@aux"].bank.push(
            torch.ones(2, 2), torch.tensor([0, 2]), torch.ones(2, dtype=torch.bool)
        )
        ema = self.regularizers["CAR"].ema
        ema.update(torch.ones_like(ema.centers), torch.ones(len(ema.counts), dtype=torch.bool))
        return self


def test_resuming_with_a_bank_of_another_size_names_key_shapes_and_cure(tmp_path):
    SafeCheckpointer(Banked(4).step(), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError) as info:
        SafeCheckpointer(Banked(6), str(tmp_path)).resume_or_load("", resume=True)
    message = str(info.value)
    assert "model_final.pth' holds state of regularizers in other shapes" in message
    assert (
        "regularizers.RegionContrast@aux.bank.rows: (3, 4, 2) in the file, (3, 6, 2) in the model" in message
    )
    assert "Set MODEL.REGULARIZERS.RegionContrast@aux.BANK_SIZE back from 6 to 4." in message
    assert f"MODEL.WEIGHTS {tmp_path / 'model_final.pth'}, another OUTPUT_DIR, no --resume" in message
    SafeCheckpointer(Banked(4), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize(
    ("method", "size_key", "keys"),
    [("RegionContrast", "BANK_SIZE", {}), ("ContrastSeg", "MEMORY_SIZE", {"MEMORY": True})],
)
def test_the_cure_names_the_key_that_the_method_has(tmp_path, method, size_key, keys):
    def model(size):
        cfg = small_cfg("FCN", [method])
        cfg.MODEL.REGULARIZERS[method].update(keys | {size_key: size})
        return build_model(cfg)

    SafeCheckpointer(model(4), str(tmp_path)).save("model_final")
    with pytest.raises(
        CheckpointError, match=rf"Set MODEL.REGULARIZERS.{method}.{size_key} back from 6 to 4\."
    ):
        SafeCheckpointer(model(6), str(tmp_path)).resume_or_load("", resume=True)


def test_resuming_with_a_feature_of_other_channels_names_the_key(tmp_path):
    """RCH on SegFormer, saved when FEATURES "auto" was the encoder's last stage."""
    cfg = small_cfg(
        "FCN", ["RCH"], SEM_SEG_HEAD__FUSION="MLPFusion", SEM_SEG_HEAD__IN_FEATURES=["res2", "res4"]
    )
    old = cfg.clone()
    old.MODEL.REGULARIZERS.RCH.FEATURES = "backbone:out[res4]"
    SafeCheckpointer(build_model(old), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError) as info:
        SafeCheckpointer(build_model(cfg), str(tmp_path)).resume_or_load("", resume=True)
    message = str(info.value)
    assert "projection.conv.weight: (256, 256, 1, 1) in the file, (256, 32, 1, 1) in the model" in message
    assert "had 256 channels there and has 32 here: set MODEL.REGULARIZERS.RCH.FEATURES" in message
    assert "such as 'backbone:out[res5]'" in message
    SafeCheckpointer(build_model(old), str(tmp_path)).resume_or_load("", resume=True)
    # What is left of it at inference fits.
    model = build_model(cfg)
    SafeCheckpointer(model, str(tmp_path)).load_for_evaluation(str(tmp_path / "model_final.pth"))


def test_resuming_with_state_of_another_width_points_at_the_section(tmp_path):
    SafeCheckpointer(Banked(channels=2), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError) as info:
        SafeCheckpointer(Banked(channels=5), str(tmp_path)).resume_or_load("", resume=True)
    message = str(info.value)
    assert "regularizers.CAR.ema.centers: (3, 2) in the file, (3, 5) in the model" in message
    assert "Set the keys of MODEL.REGULARIZERS.CAR back to those in the config.yaml" in message


def test_a_network_that_does_not_fit_is_said_first(tmp_path):
    SafeCheckpointer(Banked(4, classes=5), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError, match="does not fit the model(.|\n)*NUM_CLASSES"):
        SafeCheckpointer(Banked(6), str(tmp_path)).resume_or_load("", resume=True)


def test_weights_alone_leave_state_of_another_shape_new_and_whole(tmp_path, caplog):
    source, target = Banked(4, channels=2).step(), Banked(6, channels=5)
    path = tmp_path / "weights.pth"
    torch.save({"model": source.state_dict()}, path)
    caplog.set_level("INFO")
    SafeCheckpointer(target).load(str(path), checkpointables=[])
    contrast = target.regularizers["RegionContrast@aux"]
    # What was never written must not count as written.
    assert not contrast.bank.filled.any()
    assert contrast.bank.rows.abs().sum() == 0
    assert not target.regularizers["CAR"].ema.seen.any()
    # All else is taken over, the regularizer's own layer too.
    assert torch.equal(contrast.layer.weight, source.regularizers["RegionContrast@aux"].layer.weight)
    assert torch.equal(target.predictor.weight, source.predictor.weight)
    assert torch.equal(target.backbone[1].running_mean, source.backbone[1].running_mean)
    assert "RegionContrast@aux.bank.rows: (3, 4, 2) in the file, (3, 6, 2) in the model" in caplog.text
    assert "Not loaded, as other buffers of the same modules" in caplog.text
    # A bank of the same shape goes on.
    same = Banked(4, channels=2)
    SafeCheckpointer(same).load(str(path), checkpointables=[])
    assert same.regularizers["RegionContrast@aux"].bank.written.tolist() == [1, 0, 1]


def test_a_new_run_begins_its_warm_up_and_its_random_numbers_anew(tmp_path):
    def model(seed):
        cfg = small_cfg("FCN", ["ContrastSeg"], SEED=seed)
        cfg.MODEL.REGULARIZERS.ContrastSeg.update({"MEMORY": True, "MEMORY_SIZE": 4})
        return build_model(cfg)

    first = model(seed=1)
    first(small_batch())
    SafeCheckpointer(first, str(tmp_path)).save("model_final")
    before = first.regularizers["ContrastSeg"]
    path = str(tmp_path / "model_final.pth")

    other = model(seed=2)
    SafeCheckpointer(other).load(path, checkpointables=[])
    started = other.regularizers["ContrastSeg"]
    assert started.num_forwards.item() == 0
    assert (started.random.seed.item(), started.random.step.item()) == (2, 0)
    # What was learned and stored goes on.
    assert torch.equal(started.pixel_queue.rows, before.pixel_queue.rows)
    assert started.pixel_queue.filled.any()

    resumed = model(seed=1)
    SafeCheckpointer(resumed, str(tmp_path)).resume_or_load("", resume=True)
    for key, value in before.state_dict().items():
        assert torch.equal(resumed.regularizers["ContrastSeg"].state_dict()[key], value), key
    assert resumed.regularizers["ContrastSeg"].num_forwards.item() == 1
    assert resumed.regularizers["ContrastSeg"].random.step.item() == 1


def test_evaluation_does_not_mind_the_shapes_of_regularizers(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": Banked(4).state_dict()}, path)
    SafeCheckpointer(Banked(6)).load_for_evaluation(str(path))


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


@pytest.mark.parametrize(
    ("content", "ending", "message"),
    [
        ({"model": [1]}, "pth", "holds a list; expected a dict of weights"),
        ({"model": {3: torch.zeros(1)}}, "pth", "keys that are no names of weights: 3"),
        ({3: torch.zeros(1)}, "pth", "keys that are no names of weights: 3"),
        ({"blobs": [1]}, "pkl", "holds a list; expected a dict of weights"),
        ({3: 1}, "pkl", "keys that are no names of weights: 3"),
        ({"epoch": 1}, "pyth", "has no 'model_state'"),
    ],
)
def test_content_that_is_no_dict_of_weights(tmp_path, content, ending, message):
    path = tmp_path / f"x.{ending}"
    if ending == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        SafeCheckpointer(nn.Linear(2, 2), str(tmp_path)).load(str(path))
