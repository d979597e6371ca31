"""From networks to a folder: what is written is what they do, twice the same."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from regseg_d2.apps.compare.runs import names_of_runs
from regseg_d2.apps.explore.exploration import explore
from regseg_d2.apps.explore.gallery import Choice, choose_images
from regseg_d2.apps.explore.networks import LabelledPicture, NetworkSource, look_through
from regseg_d2.apps.explore.runs import relative_names
from regseg_d2.apps.explore.study import Options, study
from regseg_d2.common.errors import ConfigError

CLASSES = ["sky", "sea_1", "sand"]
FEW = Options(images=4, pixels_per_class=10, regions_per_class=10, projections=("pca",))
FIGURES = {
    "boundary_iou",
    "calibration",
    "calibration_terms",
    "class_dependency",
    "class_dependency_cosine",
    "class_iou",
    "confusion",
    "errors_differing",
    "errors_random",
    "errors_worst",
    "image_scores",
    "intra_inter",
    "losses",
    "pixel_cosines",
    "pixels_pca",
    "pixels_right_pca",
    "predictions_differing",
    "predictions_random",
    "predictions_worst",
    "regions_pca",
    "relations",
    "relations_dot",
    "scores",
}


def picture(number):
    """Stripes of the three classes, written into the red channel; a void line on top."""
    random = np.random.default_rng(number)
    label = np.repeat(random.integers(0, 3, (4, 4)), 4, axis=0).repeat(5, axis=1)
    pixels = random.integers(0, 255, (16, 20, 3), dtype=np.uint8)
    pixels[..., 0] = label
    label[0] = 255
    return LabelledPicture(f"{number}.png", pixels, label)


def looks(wrong_share, channels=6):
    """Sees the classes but for a share of its cells, of 2 x 2 pixels, whose class is the next one."""

    def look(pixels):
        random = np.random.default_rng(int(pixels[..., 1:].sum()))
        classes = pixels[::2, ::2, 0].astype(np.int64)
        classes = np.where(random.random(classes.shape) < wrong_share, (classes + 1) % 3, classes)
        one_hot = torch.from_numpy(np.eye(3)[classes]).permute(2, 0, 1).float()
        noise = torch.from_numpy(random.normal(0, 0.1, (channels, *classes.shape))).float()
        return torch.cat([one_hot, torch.zeros(channels - 3, *classes.shape)]) + noise, 4 * one_hot

    return look


def source(name="base", wrong=0.2, pictures=range(8), **options):
    return NetworkSource(name, CLASSES, [picture(n) for n in pictures], looks(wrong), **options)


def two():
    log = [{"iteration": i, "total_loss": 1.0 / (i + 1)} for i in range(5)]
    return [source(log=log, settings={"SEED": 1, "NAMES": []}), source("car", 0.1, settings={"SEED": 1})]


def tables(folder, name):
    with open(folder / "tables" / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    said = []
    page = explore(two(), folder, FEW, title="Two", command="as in the test", say=said.append)
    assert page == folder / "page.html"
    assert said == [f"Wrote {len(FIGURES)} figures, the numbers behind them and page.html to {folder}"]
    return folder


def test_every_figure_is_there_as_png_and_svg(written):
    files = {path.name for path in (written / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    page = (written / "page.html").read_text(encoding="utf-8")
    assert "as in the test" in page and "NAMES" in page


def test_the_same_bytes_twice(written, tmp_path):
    explore(two(), tmp_path, FEW, title="Two", command="as in the test", say=lambda line: None)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    different = [str(f) for f in files if (written / f).read_bytes() != (tmp_path / f).read_bytes()]
    assert different == []


def test_tables_have_the_numbers_of_plain_numpy(written):
    pictures = [picture(number) for number in range(8)]
    columns = []
    for wrong in (0.2, 0.1):
        confusion = np.zeros((3, 3))
        for each in pictures:
            logits = looks(wrong)(each.pixels)[1][None]
            scores = torch.nn.functional.interpolate(logits, (16, 20), mode="bilinear", align_corners=False)
            predicted = scores[0].argmax(dim=0).numpy()
            for label in range(3):
                for guess in range(3):
                    confusion[label, guess] += ((each.label == label) & (predicted == guess)).sum()
        right = confusion.diagonal()
        columns.append(100 * right / (confusion.sum(axis=0) + confusion.sum(axis=1) - right))
    header, *rows = tables(written, "class_iou")
    assert header == ["class", "base", "car"]
    assert [row[0] for row in rows] == CLASSES
    found = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(found, np.array(columns).T, rtol=1e-5)
    header, *rows = tables(written, "metrics")
    assert [row[0] for row in rows] == ["base", "car"] and header[1] == "mIoU"
    np.testing.assert_allclose([float(row[1]) for row in rows], [c.mean() for c in columns], rtol=1e-5)
    assert len(tables(written, "pixels")) == 1 + 30
    assert r"sea\_1" in (written / "tables" / "class_iou.tex").read_text()
    assert [path.name for path in sorted((written / "numbers").iterdir())] == [
        "base.npz",
        "car.npz",
        "projections.npz",
    ]


def test_images_of_every_kind_are_chosen_once():
    found = study(two(), Options(images=8, pixels_per_class=5, regions_per_class=5, projections=("pca",)))
    choice = choose_images(found)
    assert sorted(choice.all) == list(range(8))
    scores = np.stack([each.image_scores for each in found.explored])
    assert choice.worst == np.argsort(scores.mean(axis=0))[:2].tolist()
    left = [number for number in range(8) if number not in choice.worst]
    spread = np.abs(scores[0] - scores[1])
    assert list(choice.differing) == sorted(left, key=lambda number: -spread[number])[:2]
    few = choose_images(study(two(), Options(images=1, pixels_per_class=5, regions_per_class=5)))
    assert few == Choice(choice.worst[:1], [], [], [])


def test_seeds_are_put_together():
    settings = [{"SEED": 0, "LR": 1}, {"SEED": 1, "LR": 1}, {"SEED": 0, "LR": 2}]
    sources = [source(name, settings=each) for name, each in zip("abc", settings, strict=True)]
    found = study(sources, FEW)
    assert {name: len(group) for name, group in found.seeds().items()} == {"a (2 seeds)": 2, "c": 1}
    assert found.differing_settings() == [
        {"LR": "1", "SEED": "0"},
        {"LR": "1", "SEED": "1"},
        {"LR": "2", "SEED": "0"},
    ]
    # Of networks that say nothing about themselves none is another's seed.
    assert len(study([source("a"), source("b")], FEW).seeds()) == 2


def test_a_tap_of_any_module():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.ReLU(), torch.nn.Conv2d(5, 3, 1)).train()
    look = look_through(network, "2:in", lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    feature, logits = look(picture(0).pixels)
    inputs = torch.from_numpy(picture(0).pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(feature, network[:2](inputs)[0])
    torch.testing.assert_close(logits, network(inputs)[0])
    assert not network.training and not logits.requires_grad


@pytest.mark.parametrize(
    "sources, words",
    [
        (list, "no network to look at"),
        (lambda: [source(), source()], "Two networks are named 'base'"),
        (lambda: [source(), source("b", pictures=range(1, 9))], "other images or labels than 'base'"),
        (
            lambda: [source(), NetworkSource("b", ["x", "y"], [picture(0)], looks(0))],
            r"'b' has the classes \['x', 'y'\]",
        ),
        (
            lambda: [NetworkSource("b", CLASSES, iter([picture(0)]), looks(0))],
            "can be gone through once only",
        ),
        (
            lambda: [NetworkSource("b", [*CLASSES, "d"], [picture(0)], looks(0))],
            r"returned logits of the shape \(3, 8, 10\); expected \(4, h, w\)",
        ),
        (
            lambda: [
                NetworkSource("b", CLASSES, [picture(0)], lambda x: (torch.ones(2, 3), torch.ones(3, 2, 2)))
            ],
            r"returned feature of the shape \(2, 3\)",
        ),
    ],
)
def test_networks_that_do_not_fit(sources, words):
    with pytest.raises(ConfigError, match=words):
        study(sources(), FEW)


def test_names():
    folders = [Path("/runs/car/seed0"), Path("/runs/base/seed0")]
    assert names_of_runs(folders) == ["car/seed0", "base/seed0"]
    assert names_of_runs([Path("/runs/car"), Path("/runs/base")]) == ["car", "base"]
    with pytest.raises(ConfigError, match="given twice"):
        names_of_runs([Path("/runs/car"), Path("/runs/car")])
    assert relative_names(["/d/a/1.png", "/d/b/1.png"]) == ["a/1.png", "b/1.png"]
    assert relative_names(["/d/a/1.png"]) == ["1.png"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "There is nothing to look at"),
        (["no such run"], "has no config.yaml: expected the OUTPUT_DIR of a run"),
    ],
)
def test_the_command_line_without_a_run(arguments, words, tmp_path):
    command = [sys.executable, "tools/explore.py", *arguments, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
