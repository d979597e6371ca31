"""The page as a file: its bytes, its size, what stands in it. What it does is tested in a browser."""

import base64
import dataclasses
import hashlib
import io
import json
import sys
import zlib
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regseg_d2.apps.explore.page as package
from regseg_d2.apps.explore.page.content import PageContent
from regseg_d2.apps.explore.page.overview import number, overview_of, signed
from regseg_d2.apps.explore.page.packing import (
    file_uri,
    pack,
    pack_classes,
    pack_positions,
    shown_text,
    shrunken,
    thinned,
)
from regseg_d2.apps.explore.page.page import page_text, write_page
from regseg_d2.common.errors import UserError
from tests.apps.explore.page_content import (
    HOSTILE_CLASSES,
    HOSTILE_FILES,
    content_of,
    hostile_content,
    image_of,
    ious_of,
)

TYPES = {"i1": "<i1", "u1": "<u1", "u2": "<u2", "i4": "<i4", "f4": "<f4", "f8": "<f8"}


class Page(HTMLParser):
    """Elements, their attributes, and the text of each script, as a browser tells them apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def unpacked(packed):
    data = zlib.decompress(base64.b64decode(packed["data"]), -zlib.MAX_WBITS)
    return np.frombuffer(data, TYPES[packed["type"]])


def test_the_same_content_is_the_same_bytes(tmp_path):
    write_page(content_of(), tmp_path / "a.html")
    write_page(content_of(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_holds_what_it_was_given():
    content = content_of()
    page = Page(page_text(content))
    data = page.data
    assert data["names"] == list(content.image_names) and data["classes"] == list(content.classes)
    for run, shown in zip(content.runs, data["runs"], strict=True):
        np.testing.assert_array_equal(unpacked(shown["confusion"]).reshape(4, 4), run.confusion)
        np.testing.assert_array_equal(unpacked(shown["pairs"]).reshape(4, 4, 5), run.pair_images)
    pictures = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    for index, (image, shown) in enumerate(zip(content.images, data["images"], strict=True)):
        assert (shown["index"], shown["size"], shown["picture"]) == (index, [96, 128], [96, 128])
        np.testing.assert_array_equal(unpacked(shown["label"]).reshape(96, 128), image.label + 1)
        for made, facts in zip(image.runs, shown["runs"], strict=True):
            np.testing.assert_array_equal(unpacked(facts["predicted"]).reshape(96, 128), made.predicted + 1)
            np.testing.assert_array_equal(unpacked(facts["iou"]), made.iou.astype(np.float32))
            assert facts["cells"] == [12, 16] and facts["cell"] == [8, 8]
            assert unpacked(facts["feature"]).size == 16 * 12 * 16
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(pictures[index].partition(",")[2]))))
        assert np.abs(picture.astype(int) - image.pixels).mean() < 4
    pixels = content.pixels
    for key in ("image", "y", "x", "label"):
        np.testing.assert_array_equal(unpacked(data["pixels"][key]), getattr(pixels, key))
    for packed, confidence in zip(data["pixels"]["confidence"], pixels.confidence, strict=True):
        np.testing.assert_allclose(unpacked(packed) / 255, confidence, atol=0.5 / 255)


class MadeAnew:
    """Images that are made when they are asked for."""

    def __init__(self, count, **options):
        self.count, self.options = count, options

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            yield image_of(f"{i:03d}.png", seed=i, **self.options)


@pytest.mark.parametrize("budget", [3_000_000, 2_500_000])
def test_a_page_keeps_within_its_budget_and_uses_it(budget):
    rng = np.random.default_rng(0)
    content = content_of(4, size=(400, 600), stride=4, channels=32, pixels=None)
    for image in content.images:  # as hard to compress as it gets
        image.pixels[:] = rng.integers(0, 256, image.pixels.shape)
    text = page_text(content, budget=budget)
    assert 0.9 * budget < len(text.encode()) <= budget
    shown = Page(text).data["images"][0]
    assert max(shown["picture"]) < 600 and shown["size"] == [400, 600]
    directions = unpacked(shown["runs"][0]["feature"]).size / (100 * 150)
    assert 1 <= directions < 32 and f"{directions:.0f} directions" in text


def test_more_images_than_fit_are_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match=r"3 images do not fit into a page of 2\.0 MB.*Show fewer images"):
        page_text(content_of(size=(256, 256)), budget=2_000_000)


@pytest.mark.slow
def test_a_hundred_images_of_two_runs_are_below_twenty_megabytes():
    names, options = [f"{i:03d}.png" for i in range(100)], {"size": (512, 683), "stride": 8, "channels": 64}
    one = content_of(1, classes=tuple(f"class {k}" for k in range(150)), **options)
    images = MadeAnew(100, num_classes=150, runs=2, **options)
    content = dataclasses.replace(one, image_names=names, images=images)
    text = page_text(content)
    assert 15e6 < len(text.encode()) <= 20e6
    assert len(Page(text).data["images"]) == 100


def test_names_can_end_nothing_and_start_nothing():
    content = hostile_content()
    text = page_text(content)
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3 and tags.count("title") == 1 and tags.count("img") == len(content.images)
    assert not {"svg", "i", "u"} & {tag for tag in tags if tag != "i"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert page.data["classes"] == list(HOSTILE_CLASSES)
    # Control characters and halves of characters cannot stand in a page.
    assert page.data["names"][:4] == [*HOSTILE_FILES[:3], "control\ufffd and half \ufffd.png"]
    for name in HOSTILE_CLASSES[2:]:
        assert name in text  # legible in the source, too


def test_only_its_two_scripts_may_run_and_nothing_may_be_fetched():
    page = Page(page_text(content_of()))
    (policy,) = [attrs["content"] for tag, attrs in page.elements if "http-equiv" in attrs]
    plotly = unpacked(json.loads(page.scripts[1])).tobytes()
    assert b"plotly.js v" in plotly[:100]
    for script in (page.scripts[2].encode(), plotly):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data: blob:;") and "http" not in policy
    outside = [attrs for _, attrs in page.elements if str(attrs.get("src", "data:"))[:5] != "data:"]
    assert not outside and "link" not in {tag for tag, _ in page.elements}


def test_without_plotly_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"needs plotly.*pip install plotly"):
        page_text(content_of())


def test_figures_are_in_the_page(tmp_path):
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    text = page_text(content_of(figures=[("Losses & more", tmp_path / "a.svg")]))
    (image,) = [attrs for tag, attrs in Page(text).elements if attrs.get("alt") == "Losses & more"]
    assert (
        image["src"]
        == f"data:image/svg+xml;base64,{base64.b64encode((tmp_path / 'a.svg').read_bytes()).decode()}"
    )
    with pytest.raises(UserError, match=r"figure\.pdf.*ends in \.png or \.svg"):
        file_uri(tmp_path / "figure.pdf")
    with pytest.raises(UserError, match=r"gone\.png.*No such file"):
        file_uri(tmp_path / "gone.png")


def changed(content: PageContent, what: str) -> PageContent:
    """Content with one thing in it that does not fit."""
    replace = dataclasses.replace
    runs, images, pixels = list(content.runs), list(content.images), content.pixels
    made = list(images[1].runs)
    of_content = {
        "no run": {"runs": []},
        "two names": {"runs": [runs[0], replace(runs[1], name="baseline")]},
        "two images": {"image_names": ["street/000.png"] * 4},
        "colors": {"colors": content.colors[:3]},
        "confusion": {"runs": [replace(runs[0], confusion=runs[0].confusion[:3]), runs[1]]},
        "other labels": {"runs": [runs[0], replace(runs[1], confusion=2 * runs[1].confusion)]},
        "pair": {"runs": [replace(runs[0], pair_images=runs[0].pair_images + 9), runs[1]]},
        "projection": {
            "pixels": replace(pixels, projections={"PCA": [np.full((len(pixels.x), 2), np.nan)] * 2})
        },
        "label of pixels": {"pixels": replace(pixels, label=pixels.label + 4)},
    }
    of_image = {
        "unknown": {"name": "other.png"},
        "pixels": {"pixels": images[1].pixels[:50]},
        "a run less": {"runs": made[:1]},
        "nan": {"runs": [made[0], replace(made[1], feature=made[1].feature * np.nan)]},
        "cells": {"runs": [replace(made[0], cell_size=(4.0, 8.0)), made[1]]},
    }
    if what in of_content:
        return replace(content, **of_content[what])
    return replace(content, images=[images[0], replace(images[1], **of_image[what]), images[2]])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no run", r"runs: expected at least one run"),
        ("two names", r"names of runs: expected names that are there once, not baseline"),
        ("two images", r"image_names: .* not street/000\.png"),
        ("colors", r"colors: expected shape \(4, 3\), not \(3, 3\)"),
        ("confusion", r"run 'baseline': confusion: expected shape \(4, 4\), not \(3, 4\)"),
        ("other labels", r"run 'CAR': confusion: expected the labels of all runs"),
        ("pair", r"run 'baseline': pair_images: expected -1 to 3"),
        ("projection", r"projection 'PCA': expected finite numbers"),
        ("label of pixels", r"pixels: label: expected 0 to 3, not 4 to 7"),
        ("unknown", r"image 'other\.png' is not among image_names"),
        ("pixels", r"image 'street/001\.png': pixels: expected shape \(96, 128, 3\)"),
        ("a run less", r"image 'street/001\.png': runs: expected 2, one a run, not 1"),
        ("nan", r"image 'street/001\.png', run 'CAR': feature: expected finite numbers"),
        (
            "cells",
            r"cell_size: expected cells that cover 96 x 128 pixels, not 12 x 16 cells of 4 x 8",
        ),
    ],
)
def test_content_that_does_not_fit_together_is_named(what, message):
    with pytest.raises(UserError, match=message):
        page_text(changed(content_of(), what))


def test_the_overview_is_the_numbers_of_the_confusion_matrices():
    content = content_of()
    first, last = (ious_of(run.confusion) for run in content.runs)
    overview = overview_of(content)
    assert [row.index for row in overview.classes] == sorted(range(4), key=lambda k: first[k] - last[k])
    for row in overview.classes:
        assert row.ious == pytest.approx([first[row.index], last[row.index]])
        assert row.gains == pytest.approx([last[row.index] - first[row.index]])
        pixels = content.runs[0].confusion.sum(1)
        assert row.share == pytest.approx(100 * pixels[row.index] / pixels.sum())
    card = overview.cards[1]
    assert overview.lead == "mIoU" and card.lead == pytest.approx(last.mean())
    assert card.gain == pytest.approx(last.mean() - first.mean()) and card.best != overview.cards[0].best
    better = {content.classes[k]: last[k] - first[k] for k in range(4) if last[k] > first[k]}
    assert {one.name: one.gain for one in card.better} == pytest.approx(better)
    assert [one.gain for one in card.better] == pytest.approx(sorted(better.values(), reverse=True))
    assert len(card.better) + len(card.worse) == 4
    assert overview.config[0] == ("MODEL.REGULARIZERS.NAMES", ["[]", "[CAR]"])


def test_numbers_in_text():
    assert [number(value) for value in (None, float("nan"), 3.14, -2.0)] == ["–", "–", "3.1", "−2.0"]
    assert [signed(value) for value in (0.04, -0.04, 1.26, -1.26, None)] == [
        "0.0",
        "0.0",
        "+1.3",
        "−1.3",
        "–",
    ]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int32", "float32", "float64"])
def test_arrays_come_back_as_they_were(dtype):
    array = (np.random.default_rng(0).normal(size=(7, 5)) * 40).astype(dtype)
    np.testing.assert_array_equal(unpacked(pack(array)), array.ravel())
    assert pack(np.asfortranarray(array)) == pack(array)


def test_classes_are_packed_with_void_as_zero():
    label = np.array([[0, 2, -1], [3, 255, 1]])
    np.testing.assert_array_equal(unpacked(pack_classes(label, 3)), [1, 3, 0, 0, 0, 2])
    assert pack_classes(np.array([[299]]), 300)["type"] == "u2"
    assert unpacked(pack_classes(np.array([[299]]), 300)) == [300]


def test_positions_are_off_by_half_a_step_at_most():
    positions = np.random.default_rng(0).normal(size=(50, 2)) * [3, 40]
    packed = pack_positions(positions)
    again = np.array(packed["low"]) + packed["step"] * unpacked(packed).reshape(-1, 2)
    np.testing.assert_allclose(again, positions, atol=0.5001 * packed["step"])
    assert packed["step"] == pytest.approx(np.ptp(positions[:, 1]) / 65535)
    assert unpacked(pack_positions(np.ones((3, 2)))).tolist() == [0] * 6


def test_smaller_maps_have_the_value_at_the_center_of_each_pixel():
    label = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(
        thinned(label, (2, 3)),
        [[label[1, 1], label[1, 3], label[1, 5]], [label[3, 1], label[3, 3], label[3, 5]]],
    )
    np.testing.assert_array_equal(thinned(label, (4, 6)), label)
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :2] = 200
    assert shrunken(pixels, (2, 3))[0, 0].tolist() == [200] * 3 and shrunken(pixels, (4, 6)) is pixels


def test_names_lose_only_what_a_page_cannot_hold():
    assert shown_text("a\tb\x00\udcff") == "a\ufffdb\ufffd\ufffd"
    family = "👩\u200d👩\u200d👧 طريق 路"
    assert shown_text(family) == family


def test_all_files_of_the_page_are_installed():
    folder = Path(package.__file__).parent
    others = {path.suffix for path in folder.iterdir() if path.is_file()} - {".py"}
    assert others == {".html", ".css", ".js"}
    setup = (Path(__file__).parents[3] / "setup.py").read_text()
    assert '"regseg_d2.apps.explore.page": ["*.html", "*.css", "*.js"]' in setup


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_large_figure_is_a_jpeg_of_its_png(tmp_path, suffix):
    """Sheets of photos of a camera's size would fill the page by themselves."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sheet.png")
    (tmp_path / "sheet.svg").write_bytes(b"<svg/>" * 250_000)
    uri = file_uri(tmp_path / f"sheet{suffix}")
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 1_000_000
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
        assert shown.size == (700, 700)
    (tmp_path / "small.svg").write_bytes(b"<svg/>")
    assert file_uri(tmp_path / "small.svg").startswith("data:image/svg+xml;base64,")
