"""Shares of a training set: stratified, drawn from the seed, the same whoever asks."""

from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.data.subsets import draw_subset, load_train_subset

SIZES = {"a/0001TP": 61, "a/0006R0": 16, "b/0016E5": 20, "b/Seq05VD": 1}


@pytest.fixture
def cfg():
    records = [
        {"file_name": f"/x/{sequence}_{i:05d}.png", "sem_seg_file_name": "y"}
        for sequence, size in SIZES.items()
        for i in range(size)
    ]
    DatasetCatalog.register("subsets_test", lambda: records)
    MetadataCatalog.get("subsets_test").set(stuff_classes=["a"])
    cfg = get_regseg_cfg()
    cfg.DATASETS.TRAIN = ("subsets_test",)
    return cfg


def names(cfg, seed):
    return [record["file_name"] for record in load_train_subset(cfg, seed)]


def test_every_group_gives_its_share(cfg):
    assert len(names(cfg, 0)) == 98
    cfg.DATASETS.TRAIN_FRACTION = 0.125
    for grouping, expected in {
        "sequence": {"a/0001TP": 8, "a/0006R0": 2, "b/0016E5": 2, "b/Seq05VD": 1},
        "folder": {"a": 10, "b": 3},
        "": {"": 12},
    }.items():
        cfg.DATASETS.TRAIN_FRACTION_BY = grouping
        for seed in range(5):
            drawn = names(cfg, seed)
            assert drawn == sorted(set(drawn), key=names_in_order(cfg).index)
            parts = Counter(
                {"sequence": name[3:].rpartition("_")[0], "folder": name[3:4], "": ""}[grouping]
                for name in drawn
            )
            assert parts == expected


def names_in_order(cfg):
    return [record["file_name"] for record in DatasetCatalog.get("subsets_test")]


def test_the_seed_draws(cfg):
    cfg.DATASETS.TRAIN_FRACTION = 0.25
    draws = [names(cfg, seed) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
    # Every image has its turn.
    assert {name for seed in range(60) for name in names(cfg, seed)} == set(names_in_order(cfg))


def test_what_is_drawn_does_not_hang_on_the_fraction_of_others():
    groups = [("d", "a")] * 10 + [("d", "b")] * 10
    small, large = draw_subset(groups, 0.2, 3), draw_subset(groups, 0.5, 3)
    assert set(small) < set(large)


@pytest.mark.parametrize(
    ("key", "value"), [("TRAIN_FRACTION", 0.0), ("TRAIN_FRACTION", 1.5), ("TRAIN_FRACTION_BY", "city")]
)
def test_bad_values(cfg, key, value):
    cfg.DATASETS[key] = value
    with pytest.raises(ConfigError, match=f"DATASETS.{key} is"):
        load_train_subset(cfg, 0)
