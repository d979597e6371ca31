"""The doctor where things are broken (in processes of their own), and where they work."""

import os
import subprocess
import sys
import time

import pytest

from regseg_d2.apps.doctor import command as doctor
from regseg_d2.apps.doctor.checks import CHECKS, FAILED, OK, SKIPPED, run_check
from tests.setup.setup_helpers import ROOT, write_package


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """A folder that the processes of the doctor import from first, with a torch that cannot be imported."""
    (tmp_path / "torch.py").write_text(
        "raise ImportError('libcudart.so.13: cannot open shared object file')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def statuses(results):
    return [(result["name"], result["status"]) for result in results]


def test_a_check_that_kills_its_process_is_reported_and_the_others_still_run(shadow):
    (shadow / "crashing.py").write_text(
        "import os, sys\nprint('bad luck', file=sys.stderr, flush=True)\nos._exit(7)\n"
    )
    results, facts = doctor.run_checks(["import json", "import crashing", "import csv"])
    assert statuses(results) == [("import json", OK), ("import crashing", FAILED), ("import csv", OK)]
    assert results[1]["detail"] == "the process died (exit code 7): bad luck"
    assert facts == {"cuda_build": None, "cuda_available": False}


def test_a_check_that_hangs_is_reported_and_the_others_still_run(shadow):
    (shadow / "hanging.py").write_text("import time\ntime.sleep(600)\n")
    start = time.monotonic()
    results, _ = doctor.run_checks(["import hanging", "import csv"], timeout=8)
    assert statuses(results) == [("import hanging", FAILED), ("import csv", OK)]
    assert results[0]["detail"] == "no answer within 8 s"
    assert time.monotonic() - start < 120


def test_a_check_that_raises_is_reported_with_its_error(shadow):
    (shadow / "raising.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    results, _ = doctor.run_checks(["import raising", "import no_such_module"])
    assert [result["detail"] for result in results] == [
        "RuntimeError: operator torchvision::nms does not exist",
        "ModuleNotFoundError: No module named 'no_such_module'",
    ]


def run_doctor(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "regseg_d2.doctor", *arguments]
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_a_broken_torch_and_detectron2_are_named_and_the_exit_code_is_1(shadow, tmp_path):
    write_package(shadow, version="0.6")
    (shadow / "detectron2" / "config" / "__init__.py").write_text("import detectron2.absent\n")
    done = run_doctor("--imports-only", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "unknown (torch cannot be imported)" in done.stdout
    lines = {" ".join(line.split()[:3]): line for line in done.stdout.splitlines()}
    assert "libcudart.so.13" in lines["failed import torch"]
    assert "failed import detectron2.config" in lines
    assert "ok import numpy" in lines
    assert str(shadow / "detectron2") in done.stdout and "0.6" in done.stdout
    assert "Training does not work here" in done.stdout


def test_it_runs_without_any_package_installed():
    # -S and -I: no site-packages and no environment; only the standard library and this checkout.
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from regseg_d2.apps.doctor.command import main",
    ]
    code = "\n".join([*lines, "main(['--help'])"])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--imports-only" in done.stdout


def test_here_a_training_step_and_an_all_reduce_work():
    results, facts = doctor.run_checks(["training step on the CPU", "distributed: gloo"])
    assert [result["status"] for result in results] == [OK, OK], results
    assert "loss" in results[0]["detail"]
    assert facts["cuda_build"] is not None


def test_without_a_gpu_its_checks_are_skipped(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("training step on the GPU", "distributed: nccl"):
        assert run_check(name) == {"name": name, "status": SKIPPED, "detail": "torch sees no GPU"}


def test_every_check_fails_with_its_error_instead_of_raising(monkeypatch):
    def broken():
        raise MemoryError("too small")

    for name in CHECKS:
        monkeypatch.setitem(CHECKS, name, broken)
        assert run_check(name) == {"name": name, "status": FAILED, "detail": "MemoryError: too small"}


@pytest.mark.parametrize(
    ("trait", "text"),
    [
        ("np.bool", "return mask.astype(np.bool)\n"),
        ("Image.LINEAR", "def __init__(self, interp=Image.LINEAR):\n"),
        ("internal import", "def f():\n    from deeplearning.projects.cityscapesApi import labels\n"),
        ("sample of a set", "x = self._rng.sample(self._fallback_candidates, k=1)[0]\n"),
        ("tools package", ""),
    ],
)
def test_traits_of_a_detectron2_are_read_from_its_files(tmp_path, trait, text):
    path = tmp_path / "detectron2"
    path.mkdir()
    assert doctor.detectron2_traits(path) == frozenset()
    file = path / doctor.DETECTRON2_TRAITS[trait][0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert doctor.detectron2_traits(path) == {trait}


def test_harmless_words_are_no_traits(tmp_path):
    path = tmp_path / "detectron2"
    (path / "structures").mkdir(parents=True)
    (path / "data").mkdir()
    (path / "structures" / "masks.py").write_text("mask.astype(np.bool_)\nx.astype(bool)\n")
    (path / "data" / "common.py").write_text("self._rng.sample(list(self._fallback_candidates), k=1)\n")
    assert doctor.detectron2_traits(path) == frozenset()
    assert doctor.detectron2_traits(None) == frozenset()


def test_the_installed_detectron2_is_found_and_has_the_files_that_are_looked_at():
    import detectron2

    found = doctor.find_detectron2()
    assert found.version == detectron2.__version__
    assert str(found.path) == os.path.dirname(detectron2.__file__)
    for trait, (name, _) in doctor.DETECTRON2_TRAITS.items():
        assert trait == "tools package" or (found.path / name).is_file(), name
