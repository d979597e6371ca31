"""Names of weights: what they stand for, where downloads lie, and what is said without a network."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.weights import names
from regseg_d2.weights.names import cached_path, hub_file, local_file, url_of
from tests.weights.serving import DEAD, own_caches, served

KEY = "MODEL.WEIGHTS"
REPOSITORY = "timm/resnet10t.c3_in1k"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    own_caches(tmp_path / "caches", monkeypatch)
    return tmp_path / "caches"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "site" / "MSRA").mkdir(parents=True)
    with served(tmp_path / "site") as (url, asked):
        yield url, asked


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("detectron2://DeepLab/R-52.pkl", "https://dl.fbaipublicfiles.com/detectron2/DeepLab/R-52.pkl"),
        (
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        (
            "catalog://ImageNetPretrained/MSRA/R-50",
            "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        ("torchvision:resnet50.IMAGENET1K_V2", torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url),
        (
            "torchvision:fcn_resnet50.DEFAULT",
            torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT.url,
        ),
        ("https://example.org/x.pth", "https://example.org/x.pth"),
        ("output/model_final.pth", None),
        ("auto", None),
    ],
)
def test_what_a_name_stands_for(name, url):
    assert url_of(name, KEY) == url


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet51.IMAGENET1K_V1", r"no network 'resnet51' \(did you mean 'resnet50'"),
        ("torchvision:resnet50", "weights of 'resnet50' are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("torchvision:resnet50.V3", "weights of 'resnet50' are IMAGENET1K_V1"),
        ("catalog://ImageNetPretrained/X", "catalog does not have"),
    ],
)
def test_names_that_stand_for_nothing(name, message):
    with pytest.raises(ConfigError, match=f"^{KEY} is '{re.escape(name)}'.*{message}"):
        local_file(name, KEY)


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(
        ConfigError, match="torchvision, which knows where these weights are, is not installed"
    ):
        local_file("torchvision:resnet50.IMAGENET1K_V1", KEY)


def test_where_downloads_lie(caches):
    checkpoints, detectron2 = caches / "torch" / "hub" / "checkpoints", caches / "detectron2"
    for path, place in {
        # One name for several files: by path.
        "a/MSRA/R-50.pkl": detectron2 / "a" / "MSRA" / "R-50.pkl",
        "a/torchvision/R-50.pkl?download=1": detectron2 / "a" / "torchvision" / "R-50.pkl",
        "models/resnet50-0676ba61.pth": checkpoints / "resnet50-0676ba61.pth",
        "seg/mit_b0_20220624-7e0fe6dd.pth": checkpoints / "mit_b0_20220624-7e0fe6dd.pth",
        "lite/efficientnet-lite0-57934424.pth": checkpoints / "efficientnet-lite0-57934424.pth",
        "a/swin-20220317.pth": detectron2 / "a" / "swin-20220317.pth",  # a date
        "../../etc/x.pth": detectron2 / "etc" / "x.pth",
    }.items():
        assert cached_path(f"https://example.org/{path}") == place


def test_a_file_is_downloaded_once(tmp_path, server, caches):
    url, asked = server
    (tmp_path / "site" / "MSRA" / "R-50.pkl").write_bytes(b"weights")
    for _ in range(2):
        path = local_file(f"{url}/MSRA/R-50.pkl", KEY)
    assert asked == ["/MSRA/R-50.pkl"]
    assert path == str(caches / "detectron2" / "MSRA" / "R-50.pkl")
    assert Path(path).read_bytes() == b"weights"


def test_names_with_a_hash_are_checked_against_it(tmp_path, server, caches):
    url, asked = server
    name = f"net-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    (tmp_path / "site" / name).write_bytes(b"wei")
    with pytest.raises(CheckpointError, match="is not the file that its name says.*Delete it") as caught:
        local_file(f"{url}/{name}", KEY)
    path = caches / "torch" / "hub" / "checkpoints" / name
    assert f"'{path}'" in str(caught.value)
    path.unlink()
    (tmp_path / "site" / name).write_bytes(b"weights")
    assert local_file(f"{url}/{name}", KEY) == str(path)
    assert len(asked) == 2
    path.write_bytes(b"another")  # what lies in the cache is checked as well
    with pytest.raises(CheckpointError, match="is not the file"):
        local_file(f"{url}/{name}", KEY)


@pytest.mark.parametrize("name", ["folder/R-52.pkl", "folder/net-0676ba61.pth"])
def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(name):
    with pytest.raises(CheckpointError) as caught:
        local_file(f"{DEAD}/{name}", KEY)
    message = str(caught.value)
    assert message.startswith(f"{KEY}: could not download {DEAD}/{name} (")
    assert f"{KEY} FILE" in message
    place = re.search("put it at '(.*)', or", message)[1]
    assert place == str(cached_path(f"{DEAD}/{name}"))
    with open(place, "wb") as file:  # its folder is there
        file.write(b"fetched elsewhere")
    if "0676ba61" not in name:
        assert local_file(f"{DEAD}/{name}", KEY) == place


def test_a_file_that_is_not_on_the_server(server):
    with pytest.raises(CheckpointError, match=r"R-51.pkl \(HTTP Error 404: File not found\)"):
        local_file(f"{server[0]}/MSRA/R-51.pkl", KEY)


def test_the_cache_of_the_hub_needs_no_network():

    folder = Path(constants.HF_HUB_CACHE) / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / "pytorch_model.bin"
    file.parent.mkdir(parents=True)
    torch.save({}, file)
    assert hub_file(REPOSITORY, ("model.safetensors", "pytorch_model.bin"), KEY) == str(file)


def test_the_hub_without_a_network():
    with pytest.raises(CheckpointError) as caught:
        hub_file(REPOSITORY, ("model.safetensors", "pytorch_model.bin"), "MODEL.TIMM.PRETRAINED")
    message = str(caught.value)
    assert f"https://huggingface.co/{REPOSITORY}/resolve/main/model.safetensors (no connection" in message
    assert "MODEL.TIMM.PRETRAINED FILE" in message
    assert f"'{constants.HF_HUB_CACHE}/models--timm--resnet10t.c3_in1k'" in message


def test_files_of_the_hub_are_looked_for_in_turn(monkeypatch):
    asked = []

    def download(repo_id, filename, revision):
        asked.append((repo_id, filename, revision))
        if filename == "second":
            return "/file"
        raise EntryNotFoundError("no")

    monkeypatch.setattr(names, "hf_hub_download", download)
    assert hub_file("a/b@v2", ("first", "second"), KEY) == "/file"
    assert asked == [("a/b", "first", "v2"), ("a/b", "second", "v2")]
    with pytest.raises(CheckpointError, match="the hub has no such file"):
        hub_file("a/b", ("first",), KEY)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf-hub:a/b", ("a/b", ("model.safetensors", "pytorch_model.bin"))),
        ("hf-hub:a/b@v2", ("a/b@v2", ("model.safetensors", "pytorch_model.bin"))),
        ("hf-hub:a/b/weights/x.bin", ("a/b", ("weights/x.bin",))),
        ("hf-hub:a/b@v2/x.bin", ("a/b@v2", ("x.bin",))),
    ],
)
def test_a_repository_of_the_hub_is_a_name(name, asked, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "regseg_d2.weights.names.hub_file",
        lambda repository, files, key: seen.append((repository, files)) or "/f",
    )
    assert local_file(name, KEY) == "/f"
    assert seen == [asked]


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a", "hf-hub:/b", "hf-hub:a/"])
def test_half_a_repository_is_an_error(name):
    with pytest.raises(ConfigError, match="expected hf-hub:OWNER/NAME"):
        local_file(name, KEY)


@pytest.mark.parametrize(
    ("value", "meant"),
    [(True, "auto"), (False, ""), ("True", "auto"), ("false", ""), ("ms_in22k", "ms_in22k")],
)
def test_timms_own_word_for_pretrained(value, meant, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"MODEL": {"TIMM": {"PRETRAINED": value}}}))
    assert meant == load_config(str(file)).MODEL.TIMM.PRETRAINED
    assert meant == load_config("", ["MODEL.TIMM.PRETRAINED", str(value)]).MODEL.TIMM.PRETRAINED
