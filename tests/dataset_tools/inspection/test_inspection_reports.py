"""What the data set checker shows and writes: the terminal, the page, its pictures, the tool."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from regseg_d2.common.errors import ConfigError
from regseg_d2.dataset_tools.inspection.collect import collect_facts
from regseg_d2.dataset_tools.inspection.report import print_report, render_page
from regseg_d2.dataset_tools.inspection.thumbnails import choose_samples, make_thumbnails
from regseg_d2.dataset_tools.inspection.tool import check_named_datasets
from regseg_d2.drawing.overlay import blend
from tests.data.data_helpers import COLORS, facts_of, registered, toy_spec, write_pair, write_toy

ROOT = Path(__file__).parents[3]


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
    assert 'alt="&#34;c&#34;"' in page
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
    with pytest.raises(ConfigError, match="--output is .* which is a folder; expected a file in it"):
        check_named_datasets(["camvid_train"], output=str(tmp_path))
    with pytest.raises(ConfigError, match="--json is .* which is a folder"):
        check_named_datasets(["camvid_train"], frequencies=str(tmp_path))


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
