"""Bundles: one folder that predicts what the run did, wherever it is, and says what was measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from regseg_d2 import Predictor
from regseg_d2.apps.bundle.build import BundleOptions, write_bundle
from regseg_d2.common.errors import ConfigError, UserError, WriteError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.keys import flatten_config
from regseg_d2.weights.reading import load_file as load_checkpoint

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "bundle.json", "config.yaml", "model.safetensors"]


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def bundle(trained_run, tmp_path_factory, said):
    folder = tmp_path_factory.mktemp("bundles") / "farm"
    options = BundleOptions(title="Farm | weeds", license="cc-by-4.0", dataset="three fields, 2026")
    write_bundle(trained_run.folder, folder, options, say=said.append)
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_it_holds_the_inference_model_alone(trained_run, bundle, said):
    assert sorted(path.name for path in bundle.iterdir()) == FILES
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["farm"]
    assert len(said) == 1 and re.fullmatch(r"Wrote the bundle '.*farm', [\d.]+ MB; it predicts .*", said[0])
    run = load_checkpoint(str(trained_run.folder / "model_final.pth"))["model"]
    weights = load_file(bundle / "model.safetensors")
    training_only = ("regularizers.", "sem_seg_head.auxiliary.")
    assert any(name.startswith(training_only[1]) for name in run)
    assert set(weights) == {name for name in run if not name.startswith(training_only)}
    assert all(torch.equal(value, run[name]) for name, value in weights.items())


def test_its_config_is_whole_and_names_no_file_of_this_machine(trained_run, bundle):
    text = (bundle / "config.yaml").read_text()
    config = yaml.safe_load(text)
    names = set(flatten_config(config))
    assert set(flatten_config(get_regseg_cfg())) == names
    assert str(trained_run.folder.parent) not in text and str(ROOT) not in text
    assert config["DATASETS"]["DECLARED"] == [] and config["MODEL"]["REGULARIZERS"]["NAMES"] == []
    assert config["MODEL"]["SEM_SEG_HEAD"]["NORM"] == "BN"  # not "auto"
    contents = json.loads((bundle / "bundle.json").read_text())
    assert contents["classes"][2] == {"name": "weed", "color": [200, 60, 160]}
    assert contents["preprocessing"]["mean"] == [123.675, 116.28, 103.53]
    assert contents["preprocessing"]["channels"] == "RGB"


def test_its_labels_and_scores_are_the_runs(trained_run, bundle):
    run, predictor = Predictor.from_run(trained_run.folder), Predictor.from_bundle(bundle)
    assert predictor.class_names == run.class_names
    assert np.array_equal(predictor.classes.colors, run.classes.colors)
    for image in trained_run.images:
        got, expected = predictor(image, scores=True), run(image, scores=True)
        assert np.array_equal(got.labels, trained_run.labels(image))
        assert np.array_equal(got.scores, expected.scores)
    same = Predictor.from_file(bundle / "model.safetensors")
    assert np.array_equal(same(trained_run.images[0]).labels, trained_run.labels(trained_run.images[0]))


ELSEWHERE = """
import sys
import numpy as np
from regseg_d2 import Predictor

predictor = Predictor.from_bundle(sys.argv[1])
predictions = predictor(sys.argv[3:], scores=True)
np.savez(sys.argv[2], labels=[p.labels for p in predictions], scores=[p.scores for p in predictions])
"""


@pytest.mark.slow
def test_it_loads_in_an_empty_environment(trained_run, bundle, tmp_path):
    """Another folder, home and working directory; no data set, no cache, no network, no run."""
    moved, home = tmp_path / "else where" / "x", tmp_path / "home"
    shutil.copytree(bundle, moved)
    home.mkdir()
    hidden = trained_run.folder.parent.with_name("hidden")
    expected = Predictor.from_run(trained_run.folder)(trained_run.images, scores=True)
    images = [Path(shutil.copy(image, home)).name for image in trained_run.images]
    environment = {"HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    trained_run.folder.parent.rename(hidden)
    try:
        command = [sys.executable, "-c", ELSEWHERE, str(moved), str(tmp_path / "out.npz"), *images]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    finally:
        hidden.rename(trained_run.folder.parent)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as got:
        assert np.array_equal(got["labels"], [prediction.labels for prediction in expected])
        assert np.array_equal(got["scores"], [prediction.scores for prediction in expected])


def test_card_says_what_was_measured_and_who_may_use_it(trained_run, bundle):
    text = (bundle / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    measured = json.loads((trained_run.folder / "evaluation" / "farm_val.json").read_text())
    assert metadata["license"] == "cc-by-4.0" and metadata["pipeline_tag"] == "image-segmentation"
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "farm_val"
    assert result["metrics"][0]["value"] == round(measured["metrics"]["mIoU"], 4)
    assert metadata["model-index"][0]["name"] == "Farm | weeds"
    scores = [f"{measured['metrics'][name]:.2f}" for name in ("mIoU", "mACC", "pACC", "fwIoU")]
    assert f"| farm\\_val | 3 | {' | '.join(scores)} | whole image, one scale, no flip |" in body
    iou = next(each["IoU"] for each in measured["classes"] if each["name"] == "weed")
    assert f"| 2 | weed | #c83ca0 | {iou:.2f} |" in body
    assert "# Farm \\| weeds\n" in body and "- data: three fields, 2026\n" in body
    assert (
        "gone in this model: CAR, ContrastSeg\n" in body and "- steps: 2, of 2 images each; seed 1\n" in body
    )
    assert "## License\n\ncc-by-4.0\n" in body


def test_results_of_other_weights_are_left_out(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run.folder, tmp_path / "run"))
    checkpoint = torch.load(run / "model_final.pth", weights_only=True)
    checkpoint["model"]["sem_seg_head.predictor.bias"] += 1
    torch.save(checkpoint, run / "model_final.pth")
    said = []
    write_bundle(run, tmp_path / "bundle", BundleOptions(), say=said.append)
    assert f"Left out: '{run / 'evaluation' / 'farm_val.json'}' measured other weights" in said[0]
    assert "there is no evaluation of these weights" in said[2] and "names no licence" in said[3]
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert "These weights were not evaluated." in text and "Not given: ask whoever made" in text
    assert "model-index" not in text and "license:" not in text
    assert "# run\n" in text and "- data: farm\\_train\n" in text


def test_what_is_there_is_not_overwritten(trained_run, bundle, tmp_path):
    others = tmp_path / "mine"
    others.mkdir()
    (others / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"mine is there and is no bundle: name another"):
            write_bundle(trained_run.folder, others, BundleOptions(overwrite=overwrite))
    folder = Path(shutil.copytree(bundle, tmp_path / "old"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"old is there: .*say --overwrite"):
        write_bundle(trained_run.folder, folder, BundleOptions())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "note.txt").write_text("of the old one")
    write_bundle(
        trained_run.folder, folder, BundleOptions(license="mit", overwrite=True), say=lambda line: None
    )
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert "license: mit" in (folder / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]


def test_nothing_is_left_where_it_goes_wrong(trained_run, bundle, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(bundle, tmp_path / "old"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def other_weights(state, path, metadata):
        save_file({name: value + 1 for name, value in state.items()}, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", other_weights)
    with pytest.raises(WriteError, match="does not predict what the run does.*differ by up to.*backbone"):
        write_bundle(trained_run.folder, folder, BundleOptions(overwrite=True))
    with pytest.raises(WriteError):
        write_bundle(trained_run.folder, tmp_path / "new", BundleOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def change(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def add_line(file, line):
    file.write_text(line + "\n" + file.read_text())


BROKEN = {
    "no config": (lambda b: (b / "config.yaml").unlink(), "no bundle: it has no config.yaml"),
    "a run": (lambda b: (b / "bundle.json").unlink(), r"it has no bundle.json.*Predictor.from_run"),
    "other weights": (
        lambda b: (b / "model.safetensors").write_bytes((b / "model.safetensors").read_bytes()[:-1] + b"\7"),
        "model.safetensors' is not the file that bundle.json names",
    ),
    "newer": (lambda b: change(b / "bundle.json", format=2), "format is 2; expected 1"),
    "fewer classes": (
        lambda b: change(b / "bundle.json", classes=[{"name": "a", "color": [1, 2, 3]}]),
        "has 1 classes, and MODEL.SEM_SEG_HEAD.NUM_CLASSES of config.yaml is 3",
    ),
    "no colour": (
        lambda b: change(b / "bundle.json", classes=[{"name": n, "color": [1, 2, 999]} for n in "abc"]),
        "a color has the value 999; expected 0 to 255",
    ),
    "no classes": (lambda b: change(b / "bundle.json", classes=7), "classes is 7; expected a list"),
    "base": (lambda b: add_line(b / "config.yaml", "_BASE_: /etc/passwd"), "_BASE_ is .*complete"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_bundle(copy, kind):
    damage, message = BROKEN[kind]
    damage(copy)
    with pytest.raises(UserError, match=message):
        Predictor.from_bundle(copy)
    if kind == "other weights":
        with pytest.raises(UserError, match=message):
            Predictor.from_file(copy / "model.safetensors")


def test_a_strangers_bundle_runs_no_code(copy):
    (copy / "evil.py").write_text("raise SystemExit('code ran')")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("IMPORTS: []", "IMPORTS: [evil]"))
    assert "IMPORTS: [evil]" in config.read_text()
    with pytest.raises(ConfigError, match="IMPORTS is .*'evil'.*runs no code of its own"):
        Predictor.from_bundle(copy)
    assert "evil" not in sys.modules
    config.write_text(config.read_text().replace("IMPORTS: [evil]", "IMPORTS: []"))
    config.write_text(config.read_text().replace("TRUST_PICKLE: false", "TRUST_PICKLE: true"))
    assert Predictor.from_bundle(copy).cfg.MODEL.TRUST_PICKLE is False


def test_networks_that_a_bundle_cannot_hold(trained_run, tmp_path):
    (tmp_path / "mine.py").write_text("")
    run = Path(shutil.copytree(trained_run.folder, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("IMPORTS: []", f"IMPORTS: ['{tmp_path}/mine']"))
    with pytest.raises(ConfigError, match="IMPORTS .*mine.*code of yours, which a bundle does not hold"):
        write_bundle(run, tmp_path / "bundle", BundleOptions())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_the_command_line(trained_run, tmp_path):
    def run(*arguments):
        tool = [sys.executable, str(ROOT / "tools" / "bundle.py"), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(tool, cwd=tmp_path, env=environment, capture_output=True, text=True)

    arguments = (trained_run.folder, "--output", "farm", "--license", "mit", "--dataset", "fields")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Wrote the bundle 'farm', ")
    again = run(*arguments)
    assert again.returncode == 2 and again.stderr.startswith("Error: --output farm is there: name another")
    nowhere = run(tmp_path / "nowhere", "--output", "x")
    assert nowhere.returncode == 2 and "has no config.yaml: expected the OUTPUT_DIR" in nowhere.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["farm"]
