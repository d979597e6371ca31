"""The data set checker: what it counts, what it finds, what it suggests and what it writes."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from regseg_d2.data.inspection.balance import count_classes, enet_weights, median_frequency_weights
from regseg_d2.data.inspection.collect import collect_facts
from regseg_d2.data.inspection.html import render_page
from regseg_d2.data.inspection.samples import CLASSES, DUPLICATE, FILES, IMAGE, LABEL, SIZE, VALUES
from regseg_d2.data.inspection.suggestions import suggest_color_table, suggest_label_map
from regseg_d2.data.inspection.text import print_report
from regseg_d2.data.inspection.thumbnails import choose_samples, make_thumbnails
from regseg_d2.data.inspection.tool import check_named_datasets
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.errors import ConfigError
from regseg_d2.evaluation.overlay import blend
from tests.data.data_helpers import COLORS, registered, toy_spec, write_toy

ROOT = Path(__file__).parents[2]


def write_pair(root, name, label, seed=0, image_size=None):
    """Writes a random image and the given label."""
    label = np.asarray(label)
    size = image_size or label.shape
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    for folder, pixels in (("images", image), ("labels", label.astype(np.uint8))):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{name}.png")


def facts_of(spec, **options):
    with registered(spec):
        (facts,) = collect_facts([spec.name], **options)
    return facts


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


# --------------------------------------------------------------------------------------------- reports


def test_page_escapes_names_holds_its_pictures_and_needs_no_network(tmp_path):
    evil = "<script>alert(1)</script>"
    write_pair(tmp_path, "a&<b>", np.tile([0, 1, 2, 255], (30, 10)), seed=1)
    write_pair(tmp_path, '"c"', np.full((30, 40), 77), seed=2)
    spec = toy_spec(tmp_path, classes=(evil, "ground", "thing"))
    with registered(spec):
        facts = collect_facts([spec.name])
        thumbnails = [make_thumbnails(facts[0], 12)]
    page = render_page(facts, thumbnails)
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&amp;&lt;b&gt;" in page and "a&<b>" not in page
    assert 'alt="&quot;c&quot;"' in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace("data:image", ""), re.IGNORECASE)
    assert "77 (1200 pixels)" in page
    assert facts[0].suggestion.line in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 4
    sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures}
    assert sizes == {(40, 30)}
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


class Balanced(HTMLParser):
    """Raises where a tag is not closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_thumbnail_shows_the_labels_and_hatches_unknown_values(tmp_path):
    label = np.zeros((64, 64))
    label[:, 32:] = 77
    write_pair(tmp_path, "a", label)
    Image.new("RGB", (64, 64), (200, 200, 200)).save(tmp_path / "images" / "a.png")
    spec = toy_spec(tmp_path)
    with registered(spec):
        (facts,) = collect_facts([spec.name])
        (thumbnail,) = make_thumbnails(facts, 3)
    drawn = np.array(Image.open(io.BytesIO(base64.b64decode(thumbnail.overlay.split(",")[1]))), dtype=int)
    known = np.where(label == 77, 255, label).astype(int)
    expected = blend(np.full((64, 64, 3), 200, np.uint8), known, np.array(COLORS, np.uint8))
    assert np.abs(drawn - expected).mean() < 6  # JPEG
    assert np.abs(drawn[:, :30] - expected[:, :30]).max() < 12
    assert [(entry.name, entry.note) for entry in thumbnail.legend] == [
        ("sky", "50.0 %"),
        ("no class", "50.0 %"),
    ]


def test_samples_to_show_cover_the_rare_classes():
    per_image = np.zeros((100, 3), dtype=int)
    per_image[:, 0] = 10
    per_image[40, 1], per_image[41, 1] = 5, 9
    per_image[77, 2] = 1
    assert choose_samples(per_image, range(100), 2) == [41, 77]
    chosen = choose_samples(per_image, range(100), 10)
    assert len(set(chosen)) == 10 and {41, 77} <= set(chosen) and chosen == sorted(chosen)
    assert max(np.diff(chosen)) < 30  # the others lie evenly
    assert choose_samples(per_image, [3, 50], 5) == [3, 50]
    assert choose_samples(per_image, range(100), 0) == []


def test_terminal_lists_all_problems_or_the_first_of_each_kind(tmp_path):
    for i in range(4):
        write_pair(tmp_path, f"{i}[bold]", np.full((3, 3), 9), seed=i)
    facts = facts_of(toy_spec(tmp_path))

    def printed(shown):
        console = Console(file=io.StringIO(), width=80)
        print_report(console, [facts], shown=shown)
        return console.file.getvalue()

    everything = printed(None)
    for i in range(4):  # a name that looks like markup is printed as it is, and paths are not broken
        assert f"{tmp_path}/labels/{i}[bold].png holds values that mean nothing: 9 (9 pixels)." in everything
    assert "3 x 3" in everything and "nothing!" in everything
    few = printed(1)
    assert "0[bold].png" in few and "1[bold].png" not in few and "and 3 more" in few


def test_files_that_the_tool_writes(tmp_path, capsys):
    write_pair(tmp_path, "a", [[0, 0, 0, 0], [1, 1, 255, 255]], seed=1)
    write_pair(tmp_path, "b", np.ones((2, 4)), seed=2)
    page, frequencies = tmp_path / "new" / "page.html", tmp_path / "frequencies.json"
    with registered(toy_spec(tmp_path)):
        assert check_named_datasets(["toy"], output=str(page), frequencies=str(frequencies))
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(frequencies.read_text()) == {
        "dataset": "toy",
        "num_images": 2,
        "pixels": [4, 10, 0],
        "images_with_class": [1, 2, 0],
        "pixels_of_images_with_class": [6, 14, 0],
        "ignored_pixels": 2,
    }
    assert "No problem found" in capsys.readouterr().out


def test_arguments_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="No data set is named: "):
        check_named_datasets([])
    with pytest.raises(ConfigError, match='No data set is named "camvid_trian".*camvid_train'):
        check_named_datasets(["camvid_trian"])
    with pytest.raises(ConfigError, match="--json takes the frequencies of one data set"):
        check_named_datasets(["camvid_train", "camvid_val"], frequencies="x.json")
    with pytest.raises(ConfigError, match="--workers is -1"):
        check_named_datasets(["camvid_train"], workers=-1)


@pytest.mark.slow
def test_exit_status_of_the_tool(tmp_path):
    write_toy(tmp_path / "toy", count=3)
    declaration = tmp_path / "toy.yaml"
    declaration.write_text(
        "name: toy_cli\nroot: toy\nclasses: [a, b, c]\nsplits: {all: {images: images, labels: labels}}\n"
    )

    def run(*arguments):
        tool = [sys.executable, str(ROOT / "tools" / "check_dataset.py")]
        return subprocess.run([*tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    assert run("--declared", declaration).returncode == 0
    (tmp_path / "toy" / "labels" / "001.png").unlink()
    result = run("toy_cli_all", "--declared", declaration, "--workers", 2)
    assert result.returncode == 1 and "001.png has no label" in result.stdout
    result = run("toy_cli_al", "--declared", declaration)
    assert result.returncode == 2 and result.stderr.startswith("Error: No data set is named")
