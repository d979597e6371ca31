"""The generated data set: the same bytes every time, and the co-occurrence that it promises."""

import hashlib
import multiprocessing
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import regseg_d2.data  # noqa: F401  registers the data sets
from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.cooccurrence import CooccurrenceParameters, build, cooccurrence_folder
from regseg_d2.data.datasets.cooccurrence.objects import DRAWINGS
from regseg_d2.data.datasets.cooccurrence.scenes import (
    CLASSES,
    COLORS,
    GROUNDS,
    OBJECTS,
    OWN_GROUND,
    _choose_content,
    draw_scene,
)
from regseg_d2.data.labels import read_label

TINY = CooccurrenceParameters(size=64, train=6, val=2, swapped=3)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _generate(cache: str) -> str:
    """In a process of its own: makes the data set and returns its digest."""
    import os

    os.environ["REGSEG_CACHE"] = cache
    return _digest(cooccurrence_folder(TINY))


def test_generation_is_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path / "here"))
    here = _digest(cooccurrence_folder(TINY))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_generate, (str(tmp_path / "there"),))
    assert here == there


def test_two_processes_at_once_share_one_folder(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        digests = pool.map(_generate, [str(tmp_path)] * 3, chunksize=1)
    assert len(set(digests)) == 1
    assert [path.name for path in (tmp_path / "regseg_d2").iterdir()] == [f"cooccurrence_v1_{TINY.digest()}"]


def test_loser_of_the_race_takes_the_winners_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))
    write_splits = build._write_splits

    def slow(draft, parameters):
        write_splits(draft, parameters)
        winner = tmp_path / "regseg_d2" / f"cooccurrence_v1_{parameters.digest()}"
        shutil.copytree(draft, winner)
        (winner / "winner").touch()

    monkeypatch.setattr(build, "_write_splits", slow)
    assert (cooccurrence_folder(TINY) / "winner").exists()
    assert len(list((tmp_path / "regseg_d2").iterdir())) == 1


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))

    def interrupted(draft, parameters):
        (draft / "train").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_splits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cooccurrence_folder(TINY)
    assert list((tmp_path / "regseg_d2").iterdir()) == []
    assert len(list((cooccurrence_folder(TINY) / "train" / "images").iterdir())) == 6


def test_second_call_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))
    folder = cooccurrence_folder(TINY)
    monkeypatch.setattr(build, "_write_splits", None)
    assert cooccurrence_folder(TINY) == folder
    with pytest.raises(TypeError):
        cooccurrence_folder(CooccurrenceParameters(size=64, train=6, val=2, swapped=3, seed=1))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match="REGSEG_CACHE"):
        cooccurrence_folder(TINY)


def test_cache_places(monkeypatch):
    monkeypatch.delenv("REGSEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert build.cache_root() == Path("/x/regseg_d2")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_root() == Path.home() / ".cache" / "regseg_d2"


def test_registered_data_sets_load(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))
    small = CooccurrenceParameters(size=48, train=3, val=2, swapped=1)
    monkeypatch.setattr(build, "CooccurrenceParameters", lambda: small)
    for split, count in (("train", 3), ("val", 2), ("swapped", 1)):
        records = DatasetCatalog.get(f"cooccurrence_{split}")
        assert len(records) == count
        file = Image.open(records[0]["sem_seg_file_name"])
        label = read_label(records[0]["sem_seg_file_name"], num_classes=len(CLASSES))
        # The palette shows each index in its class's colour.
        np.testing.assert_array_equal(np.array(file.convert("RGB")), np.array(COLORS)[label])


def _neighbours(label: np.ndarray, class_index: int) -> np.ndarray:
    """Pixels of each ground around the lowest rows of a class: what its nearest object stands on."""
    inside = (label == class_index).astype(np.uint8)
    ring = (cv2.dilate(inside, np.ones((5, 5), np.uint8)) > 0) & (inside == 0)
    ring[: max(int(np.nonzero(inside)[0].max(initial=0)) - 5, 0)] = False
    return np.bincount(label[ring], minlength=len(CLASSES))[: len(GROUNDS)]


def _count_neighbours(own_ground: float, scenes: int = 200) -> np.ndarray:
    counts = np.zeros((len(OBJECTS), len(GROUNDS)), dtype=np.int64)
    for i in range(scenes):
        _, label = draw_scene(np.random.default_rng((1, i)), 64, own_ground)
        for row, name in enumerate(OBJECTS):
            around = _neighbours(label, CLASSES.index(name))
            if around.any():
                counts[row, around.argmax()] += 1
    return counts


def test_objects_stand_on_their_own_ground_in_train_and_val():
    counts = _count_neighbours(CooccurrenceParameters().own_ground, scenes=400)
    own = [GROUNDS.index(OWN_GROUND[name]) for name in OBJECTS]
    share = counts[np.arange(len(OBJECTS)), own] / counts.sum(axis=1)
    # A little less than the probability: of several objects of one class in a scene one is counted.
    assert (share > CooccurrenceParameters().own_ground - 0.2).all(), share
    assert (
        counts[np.arange(len(OBJECTS)), own].sum() / counts.sum() > CooccurrenceParameters().own_ground - 0.06
    )
    # Every object occurs, none more than about twice as often as another.
    assert counts.sum(axis=1).min() > 0.5 * counts.sum(axis=1).max()


def test_probability_of_the_own_ground():
    own = total = 0
    for i in range(4000):
        ground, objects = _choose_content(np.random.default_rng(i), 0.9)
        own += sum(OWN_GROUND[name] == ground for name in objects)
        total += len(objects)
    # 8,000 objects: three standard deviations are 0.01.
    assert abs(own / total - 0.9) < 0.01 and abs(total / 4000 - 2) < 0.04


def test_objects_never_meet_their_own_ground_in_swapped():
    for i in range(150):
        _, label = draw_scene(np.random.default_rng((2, i)), 64, 0.0)
        present = {CLASSES[k] for k in np.unique(label)}
        for name in OBJECTS:
            assert name not in present or OWN_GROUND[name] not in present
    counts = _count_neighbours(0.0)
    own = [GROUNDS.index(OWN_GROUND[name]) for name in OBJECTS]
    assert (counts[np.arange(len(OBJECTS)), own] == 0).all()
    # Each object is seen on each of the three other grounds.
    assert (np.delete(counts, own[0], axis=1)[0] > 0).all() and ((counts > 0).sum(axis=1) == 3).all()


def test_all_classes_occur_in_both():
    for own_ground in (0.95, 0.0):
        pixels = np.zeros(len(CLASSES), dtype=np.int64)
        for i in range(100):
            pixels += np.bincount(
                draw_scene(np.random.default_rng(i), 48, own_ground)[1].ravel(), minlength=10
            )
        assert (pixels > 0.005 * pixels.sum()).all()


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_drawn_inside_their_mask(name):
    for seed in range(5):
        canvas = DRAWINGS[name](np.random.default_rng(seed), 60)
        assert (canvas.pixels[canvas.mask == 0] == 0).all()
        assert 0.08 < canvas.mask.mean() < 0.6
        # One piece: no part hangs in the air.
        assert cv2.connectedComponents(canvas.mask)[0] == 2


def test_labels_are_exact():
    """Pixels well inside the objects' labels look unlike the ground (edges are softened by a pixel)."""
    image, label = draw_scene(np.random.default_rng(3), 96, 0.95)
    assert image.shape == (96, 96, 3) and image.dtype == label.dtype == np.uint8
    objects = (label >= len(GROUNDS)).astype(np.uint8)
    core = cv2.erode(objects, np.ones((5, 5), np.uint8)) > 0
    assert core.any()
    ground = np.median(image[objects == 0].astype(float), axis=0)
    assert np.abs(image[core] - ground).sum(axis=1).mean() > 20


def test_colour_alone_does_not_tell_look_alikes_apart():
    """Mean colours of look-alikes overlap: the gap of their means is within their spread."""
    for first, second in (("cow", "camel"), ("hen", "duck"), ("boat", "car")):
        means = []
        for name in (first, second):
            drawn = [DRAWINGS[name](np.random.default_rng((7, seed)), 40) for seed in range(60)]
            means.append(np.array([canvas.pixels[canvas.mask > 0].mean(axis=0) for canvas in drawn]))
        gap = np.abs(means[0].mean(axis=0) - means[1].mean(axis=0))
        spread = (means[0].std(axis=0) + means[1].std(axis=0)) / 2
        assert (gap < spread).all(), (first, second, gap, spread)


def test_variants_differ_in_the_share_on_own_ground_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))
    drawn = []

    def folder(parameters):
        drawn.append(parameters)
        raise DatasetError("not drawn")

    monkeypatch.setattr(build, "cooccurrence_folder", folder)
    for percent in (70, 98):
        for split in ("train", "val", "swapped"):
            with pytest.raises(DatasetError):
                DatasetCatalog.get(f"cooccurrence_{percent}_{split}")
    assert [p.own_ground for p in drawn] == [0.7] * 3 + [0.98] * 3
    assert len({p.seed for p in drawn}) == 1 and not any(p.pasted for p in drawn)


def test_pasted_scenes_hold_the_objects_of_another_scene(tmp_path, monkeypatch):
    monkeypatch.setenv("REGSEG_CACHE", str(tmp_path))
    plain = cooccurrence_folder(TINY)
    folder = cooccurrence_folder(CooccurrenceParameters(size=64, train=6, val=2, swapped=3, pasted=True))
    assert folder != plain and _digest(folder / "train") == _digest(plain / "train")

    def label(split, i):
        return read_label(str(folder / split / "labels" / f"{i:04d}.png"), num_classes=len(CLASSES))

    def pixels(split, i, kind="images"):
        return np.asarray(Image.open(folder / split / kind / f"{i:04d}.jpg"), dtype=int)

    donors = []
    for i in range(6):
        pasted = label("pasted", i)
        explained = [
            j
            for j in range(6)
            if (
                np.where(label("train", j) >= len(GROUNDS), label("train", j), label("train", i)) == pasted
            ).all()
        ]
        assert len(explained) == 1 and explained != [i]
        donors += explained
        objects = label("train", donors[-1]) >= len(GROUNDS)
        expected = np.where(objects[..., None], pixels("train", donors[-1]), pixels("train", i))
        assert np.abs(pixels("pasted", i) - expected).mean() < 3  # written as JPEG once more
    assert sorted(donors) == list(range(6))
