"""The data set checker: what it counts, what it finds and what it suggests."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from regseg_d2.data.balance import count_classes, enet_weights, median_frequency_weights
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.dataset_tools.inspection.collect import collect_facts
from regseg_d2.dataset_tools.inspection.samples import CLASSES, DUPLICATE, FILES, IMAGE, LABEL, SIZE, VALUES
from regseg_d2.dataset_tools.inspection.suggestions import suggest_color_table, suggest_label_map
from tests.data.data_helpers import COLORS, facts_of, registered, toy_spec, write_pair, write_toy

# ---------------------------------------------------------------------------------------------- counts


def test_values_classes_sizes_and_modes_of_known_labels(tmp_path):
    write_pair(tmp_path, "a", [[0, 0, 0, 0], [1, 1, 255, 255]], seed=1)
    write_pair(tmp_path, "b", np.ones((2, 4)), seed=2)
    write_pair(tmp_path, "c", np.ones((3, 3)), seed=3)
    Image.new("L", (3, 3)).save(tmp_path / "images" / "c.png")
    facts = facts_of(toy_spec(tmp_path))
    assert facts.problems == [] and facts.suggestion is None
    assert {value: (count.pixels, count.files) for value, count in facts.values.items()} == {
        0: (4, 1),
        1: (19, 3),
        255: (2, 1),
    }
    balance = facts.balance
    assert balance.num_images == 3
    assert balance.pixels.tolist() == [4, 19, 0]
    assert balance.images_with_class.tolist() == [1, 3, 0]
    assert balance.pixels_of_images_with_class.tolist() == [6, 23, 0]
    assert balance.ignored_pixels == 2
    assert balance.ignored_share == pytest.approx(2 / 25)
    assert facts.sizes == {(2, 4): 2, (3, 3): 1}
    assert facts.image_kinds == {"PNG RGB": 2, "PNG L": 1}
    assert facts.label_kinds == {"PNG L": 3}
    assert facts.notes == ["1 of 3 classes have no pixel: thing."]


def test_balance_is_that_of_the_labels_as_training_reads_them(tmp_path):
    write_toy(tmp_path, count=5)
    spec = toy_spec(tmp_path, label_map={0: 2, 1: 255, 2: 0, 255: 255})
    with registered(spec):
        reader = label_reader_for(spec.name)
        labels = np.stack([reader(path) for path in sorted((tmp_path / "labels").iterdir())])
        (facts,) = collect_facts([spec.name])
    assert facts.balance.pixels.tolist() == [(labels == i).sum() for i in range(3)]
    assert facts.balance.images_with_class.tolist() == [
        (labels == i).any(axis=(1, 2)).sum() for i in range(3)
    ]
    assert facts.balance.ignored_pixels == (labels == 255).sum()


def test_ids_of_32_bits_are_counted(tmp_path):
    write_pair(tmp_path, "a", np.zeros((2, 3)))
    ids = np.array([[70000, 70000, 5], [5, 5, 5]], dtype=np.int32)
    Image.fromarray(ids).save(tmp_path / "labels" / "a.tif")
    facts = facts_of(toy_spec(tmp_path, label_map={5: 1, 70000: 2}, label_suffixes=(".tif",)))
    assert facts.problems == []
    assert facts.balance.pixels.tolist() == [0, 4, 2]


def test_class_weights_of_the_papers():
    balance = count_classes(np.array([[4, 2, 0], [0, 8, 0]]), ignored_pixels=2)
    share = np.array([4 / 14, 10 / 14, 0])
    assert enet_weights(balance) == pytest.approx((1 / np.log(1.02 + share)).tolist())
    assert enet_weights(balance)[2] == pytest.approx(50.4983, abs=1e-4)
    # Frequencies 4/6 and 10/14, their median 29/42.
    assert median_frequency_weights(balance) == pytest.approx([29 / 28, 29 / 30, 1])


@pytest.mark.slow
def test_processes_find_the_same(tmp_path):
    write_toy(tmp_path, count=20)
    (tmp_path / "labels" / "003.png").write_bytes(b"no image")
    facts = [facts_of(toy_spec(tmp_path), workers=workers) for workers in (0, 2)]
    assert facts[0].problems == facts[1].problems != []
    assert [s.image_id for s in facts[0].samples] == [s.image_id for s in facts[1].samples]
    assert [s.digest for s in facts[0].samples] == [s.digest for s in facts[1].samples]
    assert facts[0].per_image.tolist() == facts[1].per_image.tolist()


# -------------------------------------------------------------------------------------------- problems


def break_in_many_ways(root):
    """Writes three good pairs and one of each fault; returns the (kind, file) of all problems."""
    write_toy(root, count=12, size=(10, 12))
    images, labels = root / "images", root / "labels"
    (labels / "000.png").unlink()
    (images / "001.png").unlink()
    shutil.copy(images / "002.png", images / "002.jpg")
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:100])
    (labels / "004.png").write_bytes((labels / "004.png").read_bytes()[:60])
    Image.new("L", (12, 11)).save(labels / "005.png")
    Image.fromarray(np.full((10, 12), 9, np.uint8)).save(labels / "006.png")
    Image.new("RGB", (12, 10)).save(labels / "007.png")
    Image.new("L", (12, 10)).save(labels / "008.png", format="JPEG")
    Image.fromarray(np.zeros((10, 12), np.uint16)).save(images / "009.png")
    return {
        (FILES, str(images / "000.png")),
        (FILES, str(labels / "001.png")),
        (FILES, str(images / "002.jpg")),
        (IMAGE, str(images / "003.png")),
        (LABEL, str(labels / "004.png")),
        (SIZE, str(labels / "005.png")),
        (VALUES, str(labels / "006.png")),
        (LABEL, str(labels / "007.png")),
        (LABEL, str(labels / "008.png")),
        (IMAGE, str(images / "009.png")),
    }


def test_ten_kinds_of_faults_are_found_in_one_run(tmp_path):
    expected = break_in_many_ways(tmp_path)
    facts = facts_of(toy_spec(tmp_path))
    assert {(problem.kind, problem.file) for problem in facts.problems} == expected
    assert len(facts.problems) == len(expected) == 10
    assert [sample.image_id for sample in facts.samples if not sample.problems] == ["010", "011"]
    for problem in facts.problems:
        assert Path(problem.file).name in problem.text
    texts = {Path(problem.file).stem: problem.text for problem in facts.problems}
    assert "has no label" in texts["000"] and str(tmp_path / "labels" / "000") in texts["000"]
    assert "has no image" in texts["001"]
    assert 'the stem "002"' in texts["002"]
    assert "11 x 12" in texts["005"] and "10 x 12" in texts["005"]
    assert "9 (120 pixels)" in texts["006"]
    assert "JPEG" in texts["008"] and "I;16" in texts["009"]


def test_missing_folders_and_empty_sets_are_problems_and_no_crash(tmp_path):
    facts = facts_of(toy_spec(tmp_path))
    assert [Path(problem.file).name for problem in facts.problems] == ["images", "labels"]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    facts = facts_of(toy_spec(tmp_path))
    assert len(facts.problems) == 1 and "is empty" in facts.problems[0].text
    assert facts.samples == []


def test_each_missing_file_of_a_list_is_named(tmp_path):
    write_toy(tmp_path, count=4)
    (tmp_path / "list.txt").write_text("000\n001\nnone\n003\n")
    (tmp_path / "labels" / "003.png").unlink()
    facts = facts_of(toy_spec(tmp_path, list_file=str(tmp_path / "list.txt")))
    places = [(problem.file, re.search("no (image|label)", problem.text)[1]) for problem in facts.problems]
    line = f"{tmp_path / 'list.txt'}, line "
    assert places == [(line + "3", "image"), (line + "3", "label"), (line + "4", "label")]
    assert [sample.image_id for sample in facts.samples] == ["000", "001"]
    (tmp_path / "list.txt").write_text("images/000.png labels/000.png\nimages/001.png labels/009.png\n")
    facts = facts_of(toy_spec(tmp_path, list_file="list.txt", base=lambda: tmp_path))
    (problem,) = facts.problems
    assert problem.file.endswith("line 2") and "no label" in problem.text
    assert len(facts.samples) == 1


def test_binary_masks_whose_foreground_would_be_ignored(tmp_path):
    write_pair(tmp_path, "a", [[0, 255], [255, 0]])
    facts = facts_of(toy_spec(tmp_path, classes=("no", "yes"), colors=COLORS[:2]))
    assert [problem.kind for problem in facts.problems] == [CLASSES]
    assert facts.suggestion.line == "label_map: {0: 0, 255: 1}"
    fixed = toy_spec(tmp_path, classes=("no", "yes"), colors=COLORS[:2], label_map={0: 0, 255: 1})
    assert facts_of(fixed).problems == []


def test_labels_without_a_class_are_noted_and_a_set_of_them_is_a_problem(tmp_path):
    write_pair(tmp_path, "a", np.full((2, 2), 255), seed=1)
    assert [problem.kind for problem in facts_of(toy_spec(tmp_path)).problems] == [CLASSES]
    write_pair(tmp_path, "b", [[0, 1], [2, 2]], seed=2)
    facts = facts_of(toy_spec(tmp_path))
    assert facts.problems == []
    assert facts.notes == [f"1 labels have no pixel with a class: {tmp_path / 'labels' / 'a.png'}."]


def test_pictures_that_splits_share_are_found_whatever_their_format(tmp_path):
    first = toy_spec(write_toy(tmp_path / "a", count=3, seed=1), "first")
    second = toy_spec(write_toy(tmp_path / "b", count=3, seed=2), "second", image_suffixes=(".png", ".bmp"))
    with Image.open(tmp_path / "a" / "images" / "001.png") as image:
        image.save(tmp_path / "b" / "images" / "002.bmp")
    (tmp_path / "b" / "images" / "002.png").unlink()
    shutil.copy(tmp_path / "b" / "images" / "000.png", tmp_path / "b" / "images" / "001.png")
    with registered(first, second):
        facts = collect_facts(["first", "second"])
    assert facts[0].problems == [] and facts[0].notes == []
    (problem,) = facts[1].problems
    assert (problem.kind, problem.file) == (DUPLICATE, str(tmp_path / "b" / "images" / "002.bmp"))
    assert str(tmp_path / "a" / "images" / "001.png") in problem.text
    assert len(facts[1].notes) == 1 and "1 images occur more than once" in facts[1].notes[0]


# ----------------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("values", "classes", "label_map", "expected"),
    [
        ([0, 1, 2, 255], 3, None, None),
        ([0, 255], 2, None, {0: 0, 255: 1}),
        ([255], 2, None, {0: 0, 255: 1}),
        ([0, 255], 3, None, None),  # 255 can be meant to be ignored
        ([0, 1, 2, 3], 3, None, {0: 255, 1: 0, 2: 1, 3: 2}),  # 1..K, with 0 for void
        ([1, 3], 3, None, {0: 255, 1: 0, 2: 1, 3: 2}),
        ([0, 3, 255], 3, None, {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}),
        ([0, 128, 254], 3, None, {0: 0, 128: 1, 254: 2}),
        ([0, 128, 255], 3, None, {0: 0, 128: 1, 255: 2}),
        ([0, 128, 255], 2, None, {0: 0, 128: 255, 255: 1}),
        ([0, 7, 99, 255], 2, None, {0: 0, 7: 255, 99: 255, 255: 1}),
        ([10, 20, 30, 255], 3, None, {10: 0, 20: 1, 30: 2, 255: 255}),
        ([0, 1, 7, 9], 3, None, {0: 0, 1: 1, 2: 2, 7: 255, 9: 255}),
        ([4, 5, 6], 2, {4: 0, 5: 1}, {4: 0, 5: 1, 6: 255}),
        ([4, 5], 2, {4: 0, 5: 1, 9: 255}, None),
    ],
)
def test_suggested_label_maps(values, classes, label_map, expected):
    suggestion = suggest_label_map(values, LabelReader(label_map=label_map, num_classes=classes))
    if expected is None:
        assert suggestion is None
        return
    found = yaml.safe_load(suggestion.line)["label_map"]
    assert found == expected
    # What is suggested is a declaration that accounts for every value.
    assert suggest_label_map(values, LabelReader(label_map=found, num_classes=classes)) is None


def test_suggested_color_tables(tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 3)))
    painted = np.array([[COLORS[0], COLORS[2], COLORS[2]]], dtype=np.uint8)
    Image.fromarray(painted).save(tmp_path / "labels" / "a.png")
    facts = facts_of(toy_spec(tmp_path))
    assert [problem.kind for problem in facts.problems] == [LABEL]
    assert facts.suggestion.line == "color_table: classes"
    suggestion = suggest_color_table({(0, 0, 0), (1, 2, 3), COLORS[1]}, ["sky", "ground", "thing"], COLORS)
    assert suggestion.line == ("color_table: {ground: [90, 60, 30], ignore: [[0, 0, 0], [1, 2, 3]]}")
    assert suggest_color_table(set(), ["a"], COLORS[:1]) is None
