"""Files that go bad while a run lasts: replaced alike whoever reads them, counted, or the end."""

from itertools import islice

import pytest
import torch
from detectron2.utils import comm

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.bad_files import BadFileLedger
from regseg_d2.data.checks import check_datasets
from regseg_d2.data.loader import build_test_loader, build_train_loader
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy
from tests.distributed.launching import run_processes

SKIP = {"DATALOADER__BAD_FILES": "skip"}


@pytest.fixture
def toy(tmp_path):
    """Eight samples; the image of one is cut off, the label of another is gone."""
    write_toy(tmp_path, count=8)
    with registered(toy_spec(tmp_path)):
        yield tmp_path


def damage(root):
    image = root / "images" / "003.png"
    image.write_bytes(image.read_bytes()[:90])
    (root / "labels" / "006.png").unlink()


def batches(count, root=None, start_iter=0, **overrides):
    """The first batches; the files are damaged once the loader has listed them."""
    loader = build_train_loader(toy_cfg(**{**SKIP, **overrides}), seed=5, start_iter=start_iter)
    if root is not None:
        damage(root)
    return list(islice(loader, count))


def content(samples):
    return [(s["image_id"], s["image"].numpy().tobytes(), s["sem_seg"].numpy().tobytes()) for s in samples]


def flat(list_of_batches):
    return [sample for batch in list_of_batches for sample in batch]


def test_another_sample_takes_the_place_and_the_rest_stays(toy):
    whole = flat(batches(4))
    assert not any("bad_files" in sample for sample in whole)
    skipped = flat(batches(4, toy))
    replaced = [i for i, sample in enumerate(whole) if sample["image_id"] in ("003", "006")]
    assert len(replaced) == 4  # two epochs of eight
    for i, (before, after) in enumerate(zip(whole, skipped, strict=True)):
        if i in replaced:
            assert after["image_id"] not in ("003", "006")
            # The file that was to be read is named; a replacement that was bad as well, too.
            assert before["file_name"] in after["bad_files"]
        else:
            assert content([before]) == content([after]) and "bad_files" not in after
    reasons = {k: v for sample in skipped for k, v in sample.get("bad_files", {}).items()}
    assert sorted(name[-7:] for name in reasons) == ["003.png", "006.png"]
    assert "003.png cannot be read" in reasons[str(toy / "images" / "003.png")]
    assert (
        f"label file {toy / 'labels' / '006.png'} does not exist" in reasons[str(toy / "images" / "006.png")]
    )


def test_the_same_for_every_number_of_workers_and_processes_and_place_of_resuming(toy, monkeypatch):
    loaders = {  # listed while the files are whole, as in a run
        "alone": build_train_loader(toy_cfg(**SKIP), seed=5),
        "workers": build_train_loader(toy_cfg(**SKIP, DATALOADER__NUM_WORKERS=2), seed=5),
        "resumed": build_train_loader(toy_cfg(**SKIP), seed=5, start_iter=1),
    }
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loaders[rank] = build_train_loader(toy_cfg(**SKIP), seed=5)
    damage(toy)
    seen = {name: [content(batch) for batch in islice(loader, 4)] for name, loader in loaders.items()}
    assert seen["workers"] == seen["alone"]
    assert seen["resumed"][:3] == seen["alone"][1:]
    for step in range(4):
        assert sorted(seen[0][step] + seen[1][step]) == sorted(seen["alone"][step])


def test_stop_is_the_default_and_names_the_file(toy):
    with pytest.raises(DatasetError, match=r"003\.png cannot be read|006\.png does not exist"):
        batches(4, toy, DATALOADER__BAD_FILES="stop")
    assert toy_cfg().DATALOADER.BAD_FILES == "stop"


def test_nothing_but_bad_files_comes_to_an_end(toy):
    loader = build_train_loader(toy_cfg(**SKIP), seed=5)
    for path in toy.glob("images/*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"8 samples .*MAX_BAD_FILES is 10(.|\n)*000\.png cannot be read"):
        next(iter(loader))


def test_more_than_the_budget_ends_the_run_and_lists_them(toy, caplog):
    loader, second = (build_train_loader(toy_cfg(**SKIP), seed=5) for _ in range(2))
    damage(toy)
    ledger = BadFileLedger(max_bad_files=2)
    watched = ledger.watch(loader)
    for _ in range(4):
        assert all("bad_files" not in sample for sample in next(watched))
    assert ledger.num_new == 2
    ledger.share()
    assert (ledger.num_new, sorted(name[-7:] for name in ledger.files)) == (0, ["003.png", "006.png"])
    assert caplog.text.count("SKIPPED A BAD FILE") == 2
    for _ in range(2):  # another epoch: they are known
        next(watched)
    assert ledger.num_new == 0
    resumed = BadFileLedger(max_bad_files=2)
    resumed.load_state_dict(ledger.state_dict())
    (toy / "images" / "001.png").write_bytes(b"")
    again = resumed.watch(second)
    for _ in range(2):
        next(again)
    assert resumed.num_new == 1
    with pytest.raises(DatasetError, match=r"3 samples .*MAX_BAD_FILES is 2(.|\n)*001\.png"):
        resumed.share()


def test_unknown_values(toy):
    with pytest.raises(ConfigError, match="BAD_FILES is 'ignore'; expected 'stop' or 'skip'"):
        batches(1, DATALOADER__BAD_FILES="ignore")
    with pytest.raises(ConfigError, match="MAX_BAD_FILES is -1"):
        batches(1, DATALOADER__MAX_BAD_FILES=-1)


def test_evaluation_always_stops(toy):
    loader = build_test_loader(toy_cfg(test=("toy",), **SKIP), "toy")
    damage(toy)
    with pytest.raises(DatasetError, match=r"images/003\.png cannot be read"):
        list(loader)


def test_the_start_up_check_lets_training_files_pass_and_names_them(toy, caplog):
    image = toy / "images" / "003.png"
    image.write_bytes(image.read_bytes()[:90])
    check_datasets(toy_cfg(**SKIP))
    assert f"will be skipped (DATALOADER.BAD_FILES): The image file {image} cannot be read" in caplog.text
    for changes in ({}, {"test": ("toy",), **SKIP}):
        with pytest.raises(DatasetError, match=r"003\.png cannot be read"):
            check_datasets(toy_cfg(**changes))
    for path in toy.glob("images/*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"000\.png cannot be read"):
        check_datasets(toy_cfg(**SKIP))


def share_from_one():
    ledger = BadFileLedger(max_bad_files=1)
    if comm.get_rank() == 1:
        list(ledger.watch([[{"bad_files": {"a.png": "a is cut off"}}]]))
    ledger.share()
    first = ledger.state_dict()
    list(ledger.watch([[{"bad_files": {f"{comm.get_rank()}.png": "gone"}}]]))
    try:
        ledger.share()
    except DatasetError as error:
        return first, str(error)
    return first, ""


@pytest.mark.slow
def test_all_processes_know_and_stop_alike(tmp_path):
    torch.set_num_threads(1)
    first, second = run_processes(share_from_one, 2, tmp_path)
    assert first == second
    assert first[0] == {"a.png": "a is cut off"}
    assert first[1].startswith("3 samples of the training data cannot be used")
