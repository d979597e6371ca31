"""The page on which a model predicts photos, over HTTP."""

import io
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import uvicorn
from PIL import Image

from regseg_d2.apps.serve import make_app, serve
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.prediction import Predictor
from tests.apps.test_predict import photo, trained  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def served(trained):  # noqa: F811
    """The address, and the predictor behind it."""
    config, _ = trained
    predictor = Predictor.from_file(load_config(config).MODEL.WEIGHTS, config)
    server = uvicorn.Server(uvicorn.Config(make_app(predictor), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", predictor
    server.should_exit = True
    thread.join(10)


def post(address, content):
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, content, method="POST"), timeout=60
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


def test_a_photo_comes_back_painted(served, tmp_path):
    address, predictor = served
    path = photo(tmp_path / "a.png", (50, 70))
    status, content = post(f"{address}/predict?opacity=0.3", path.read_bytes())
    assert status == 200
    expected = predictor(path).overlay(0.3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(expected))


def test_what_cannot_be_predicted_is_said(served, tmp_path, monkeypatch):
    address, _ = served
    status, said = post(f"{address}/predict", b"no image")
    assert status == 400 and "The image file that was sent cannot be read" in said
    status, said = post(f"{address}/predict?opacity=2", photo(tmp_path / "a.png").read_bytes())
    assert status == 400 and "opacity is 2.0; expected 0 to 1" in said
    monkeypatch.setattr("regseg_d2.apps.serve._MOST_MEGABYTES", 1)
    status, said = post(f"{address}/predict", bytes(2**20 + 1))
    assert status == 413 and "more than 1 MB" in said


def test_the_page_is_there(served):
    with urllib.request.urlopen(served[0], timeout=60) as answer:
        assert "<h1>Predict a photo</h1>" in answer.read().decode()


def test_a_port_that_is_none():
    with pytest.raises(ConfigError, match="--port is 70000"):
        serve(None, "127.0.0.1", 70000)
