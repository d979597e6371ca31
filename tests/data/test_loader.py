"""Loaders: the same batches for every number of workers and processes, and after a resume."""

import gc
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.loader import build_test_loader, build_train_loader, forward_batch_size
from regseg_d2.data.records import load_records, load_training_records
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy


@pytest.fixture
def toy(tmp_path):
    write_toy(tmp_path)
    with registered(toy_spec(tmp_path)):
        yield tmp_path


def _batches(count, start_iter=0, seed=5, **overrides):
    overrides = {"INPUT__COLOR_JITTER__HUE": 0.1, **overrides}
    return list(islice(build_train_loader(toy_cfg(**overrides), seed=seed, start_iter=start_iter), count))


def _content(batches):
    return [
        [(s["image_id"], s["image"].numpy().tobytes(), s["sem_seg"].numpy().tobytes()) for s in batch]
        for batch in batches
    ]


def test_batches_do_not_depend_on_workers(toy):
    alone = _content(_batches(5))
    assert _content(_batches(5, DATALOADER__NUM_WORKERS=2)) == alone
    assert len({sample for batch in alone for sample in batch}) == 20


def test_global_random_state_is_neither_read_nor_changed(toy):
    torch.manual_seed(1)
    np.random.seed(1)
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = _content(_batches(2, DATALOADER__NUM_WORKERS=1))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    torch.manual_seed(2)
    np.random.seed(2)
    assert _content(_batches(2, DATALOADER__NUM_WORKERS=1)) == first


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_equals_skipping(toy, accumulation):
    options = {"SOLVER__ACCUM_STEPS": accumulation}
    straight = _content(_batches(6 * accumulation, **options))
    assert _content(_batches(2 * accumulation, start_iter=4, **options)) == straight[4 * accumulation :]


def test_processes_share_the_batch(toy, monkeypatch):
    single = _content(_batches(3))
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        parts.append(_content(_batches(3)))
    for step in range(3):
        assert sorted(parts[0][step] + parts[1][step]) == sorted(single[step])


def test_seeds_give_other_batches(toy):
    assert _content(_batches(1)) != _content(_batches(1, seed=6))


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_arrives_whole(toy, workers):
    path = toy / "images" / "004.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"image file .*004\.png cannot be read") as caught:
        _batches(4, DATALOADER__NUM_WORKERS=workers)
    assert type(caught.value) is DatasetError and "Traceback" not in str(caught.value)


def test_samples_can_be_pickled(toy):
    """Start methods other than fork send the data set to the workers as a pickle."""
    loader = build_train_loader(toy_cfg(), seed=0)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[(3, 2)]["image"], loader.dataset[(3, 2)]["image"])


def test_two_data_sets_are_joined(tmp_path):
    specs = [toy_spec(write_toy(tmp_path / name, count=3, seed=i), name=name) for i, name in enumerate("ab")]
    with registered(*specs):
        (batch,) = islice(build_train_loader(toy_cfg(train="ab", SOLVER__IMS_PER_BATCH=6), seed=0), 1)
    folders = sorted(Path(sample["file_name"]).parent.parent.name for sample in batch)
    assert folders == ["a"] * 3 + ["b"] * 3


def test_joined_data_sets_need_equal_classes(tmp_path):
    specs = [
        toy_spec(write_toy(tmp_path / "a"), name="a"),
        toy_spec(write_toy(tmp_path / "b"), name="b", classes=("sky", "sea", "thing")),
    ]
    with (
        registered(*specs),
        pytest.raises(DatasetError, match=r"differ, first at index 1: \['ground'\] and \['sea'\]"),
    ):
        build_train_loader(toy_cfg(train="ab"), seed=0)


def test_test_loader_keeps_order(toy):
    loader = build_test_loader(toy_cfg(DATALOADER__NUM_WORKERS=2), "toy")
    assert len(loader) == 6
    batches = list(loader)
    assert [sample["image_id"] for (sample,) in batches] == [f"{i:03d}" for i in range(6)]
    assert [sample["image_id"] for (sample,) in loader] == [f"{i:03d}" for i in range(6)]


def test_evaluations_leave_nothing_behind(toy):
    """No worker, file or memory stays when an evaluation has ended, however often it is repeated."""
    import psutil

    process, cfg = psutil.Process(), toy_cfg(DATALOADER__NUM_WORKERS=2)

    def measure():
        for _ in range(2):
            assert len(list(build_test_loader(cfg, "toy"))) == 6
        gc.collect()
        return len(process.children()), process.num_fds(), process.memory_info().rss

    measure()
    before, after = measure(), measure()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 4e6


def test_prefetch_is_checked(toy):
    cfg = toy_cfg(DATALOADER__NUM_WORKERS=1, DATALOADER__PREFETCH=5)
    assert build_train_loader(cfg, seed=0).loader.prefetch_factor == 5
    with pytest.raises(ConfigError, match="DATALOADER.PREFETCH is 0"):
        build_train_loader(toy_cfg(DATALOADER__PREFETCH=0), seed=0)


def test_test_loader_gives_each_process_its_stretch(toy, monkeypatch):
    seen = []
    for rank in range(4):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
        seen.append([sample["image_id"] for (sample,) in build_test_loader(toy_cfg(), "toy")])
    assert seen == [["000", "001"], ["002", "003"], ["004"], ["005"]]


@pytest.mark.parametrize(
    "images, steps, world_size, expected", [(8, 1, 1, 8), (8, 2, 1, 4), (8, 2, 2, 2), (6, 3, 2, 1)]
)
def test_forward_batch_size(images, steps, world_size, expected):
    cfg = toy_cfg(SOLVER__IMS_PER_BATCH=images, SOLVER__ACCUM_STEPS=steps)
    assert forward_batch_size(cfg, world_size) == expected


@pytest.mark.parametrize(
    "images, steps, world_size, nearest",
    [(10, 2, 2, "8 or 12"), (3, 1, 4, ": 4"), (7, 7, 2, ": 14"), (0, 1, 1, ": 1")],
)
def test_batches_that_cannot_be_shared(images, steps, world_size, nearest):
    cfg = toy_cfg(SOLVER__IMS_PER_BATCH=images, SOLVER__ACCUM_STEPS=steps)
    with pytest.raises(ConfigError, match=f"IMS_PER_BATCH is {images}") as caught:
        forward_batch_size(cfg, world_size)
    assert f"{nearest}." in str(caught.value)


def test_no_accumulation_step():
    with pytest.raises(ConfigError, match="ACCUM_STEPS is 0"):
        forward_batch_size(toy_cfg(SOLVER__ACCUM_STEPS=0), 1)


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ConfigError, match="camvid_trian.*did you mean 'camvid_train'"):
        load_records("camvid_trian")


def test_data_sets_of_others():
    """What a user registered with Detectron2 alone: usable if it has labels, else an error."""
    name = "registered_by_hand"
    records: list[dict] = []
    DatasetCatalog.register(name, lambda: records)
    with pytest.raises(DatasetError, match="is empty"):
        load_records(name)
    records.append({"file_name": "a.png"})
    with pytest.raises(DatasetError, match="sem_seg_file_name"):
        load_records(name)
    records[0]["sem_seg_file_name"] = "b.png"
    (record,) = load_records(name)
    assert (record["dataset_name"], record["image_id"]) == (name, "a.png")
    assert "dataset_name" not in records[0]


def test_no_training_data():
    with pytest.raises(ConfigError, match="DATASETS.TRAIN"):
        load_training_records(())
