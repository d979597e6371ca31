"""Bundles on the hub: pushed to, and loaded from, a stand-in that answers huggingface_hub's own requests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regseg_d2 import Predictor
from regseg_d2.apps.bundle.build import BundleOptions, write_bundle
from regseg_d2.common.errors import CheckpointError
from tests.prediction.hub_server import TOKEN, hub_server
from tests.weights.serving import DEAD

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FILES = ["README.md", "bundle.json", "config.yaml", "model.safetensors"]
LOAD = """
import sys
import numpy as np
from regseg_d2 import Predictor

predictor = Predictor.from_hub(sys.argv[1])
np.save(sys.argv[2], predictor(sys.argv[3]).labels)
"""


@pytest.fixture(scope="module")
def hub():
    with hub_server() as (url, hub):
        yield url, hub


def run(folder, url, *command, token=TOKEN, **variables):
    """Runs Python with a hub and caches of its own: addresses are read when huggingface_hub is imported."""
    environment = {
        **os.environ,
        **{
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "hf"),
        },
        **{"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"},
        **variables,
    }
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def pushed(hub, trained_run, tmp_path_factory):
    url, _ = hub
    folder = tmp_path_factory.mktemp("pushed")
    tool = (ROOT / "tools" / "bundle.py", trained_run.folder, "--output", "farm", "--license", "mit")
    done = run(folder, url, *tool, "--push", "me/farm", "--private")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_push_uploads_the_files_in_one_commit(hub, pushed):
    url, server = hub
    folder, said = pushed
    assert f"Pushed it: {url}/me/farm/commit/" in said and "Predictor.from_hub('me/farm') loads it" in said
    files = server.files("me/farm")
    assert sorted(files) == [".gitattributes", *FILES]
    assert all(files[name] == (folder / "farm" / name).read_bytes() for name in FILES)
    assert len(server.repositories["me/farm"]) == 2 and server.private["me/farm"]


def test_from_hub_predicts_what_the_run_does_and_downloads_once(hub, pushed, trained_run, tmp_path):
    url, server = hub
    image = trained_run.images[0]
    server.files("me/farm")["huge.bin"] = b"0" * 1000  # nobody asks for it
    for repository, address, expected in (
        ("me/farm", url, set(FILES)),
        (f"me/farm@{server.commit_id(1)}", url, set()),  # the same commit
        ("me/farm", DEAD, set()),
    ):
        before = len(server.asked)
        (tmp_path / "load.py").write_text(LOAD)
        done = run(tmp_path, address, "load.py", repository, tmp_path / "labels.npy", image)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.load(tmp_path / "labels.npy"), trained_run.labels(image))
        asked = [line for line in server.asked[before:] if line.startswith("GET") and "/resolve/" in line]
        assert {line.rpartition("/")[2] for line in asked} == expected
    assert not any("huge.bin" in line for line in server.asked)


def test_what_is_on_the_hub_is_not_overwritten(hub, pushed, trained_run, tmp_path):
    url, server = hub
    before = len(server.repositories["me/farm"])
    tool = (ROOT / "tools" / "bundle.py", trained_run.folder, "--push", "me/farm", "--output")
    done = run(tmp_path, url, *tool, "new")
    assert done.returncode == 2
    assert (
        "Error: --push me/farm has README.md, bundle.json, config.yaml, model.safetensors already"
        in done.stderr
    )
    assert len(server.repositories["me/farm"]) == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FILES
    done = run(tmp_path, url, *tool, "new", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert server.files("me/farm")["README.md"] == (tmp_path / "new" / "README.md").read_bytes()
    assert "Not given" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize(
    ("address", "repository", "token", "message"),
    [
        (None, "me/other", "hf_wrong", "could not be pushed to me/other at .*401"),
        (None, "you/farm", TOKEN, "could not be pushed to you/farm at .*403"),
        (DEAD, "me/other", TOKEN, "could not be pushed to me/other at http://127.0.0.1:9 .*ConnectError"),
        (None, "no name at all", TOKEN, "could not be pushed to no name at all .*Repo id"),
    ],
)
def test_pushes_that_fail(hub, trained_run, tmp_path, address, repository, token, message):
    url, server = hub
    before = dict(server.repositories)
    tool = (ROOT / "tools" / "bundle.py", trained_run.folder, "--output", "new", "--push", repository)
    done = run(tmp_path, address or url, *tool, token=token)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "hf auth login, or HF_TOKEN" in done.stderr and "The folder is whole" in done.stderr
    assert server.repositories == before


def test_loads_that_fail(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing", "no name at all"):
        with pytest.raises(CheckpointError, match=f"'{name}' could not be had.*Without a network: fetch"):
            Predictor.from_hub(name)


def test_write_and_load_in_one_process(trained_run, tmp_path, monkeypatch):
    """The call that fetches gets the name, the revision and the files that a bundle has, and no others."""
    write_bundle(trained_run.folder, tmp_path / "farm", BundleOptions(), say=lambda line: None)
    calls = []

    def snapshot_download(name, **arguments):
        calls.append((name, arguments))
        return str(tmp_path / "farm")

    monkeypatch.setattr("regseg_d2.prediction.hub.snapshot_download", snapshot_download)
    image = trained_run.images[0]
    predictor = Predictor.from_hub("me/farm@v2", token="secret", device="cpu")
    assert np.array_equal(predictor(image).labels, trained_run.labels(image))
    patterns = [*FILES[3:], "config.yaml", "bundle.json", "README.md", "huggingface/config.json"]
    assert calls == [("me/farm", {"revision": "v2", "allow_patterns": patterns, "token": "secret"})]
