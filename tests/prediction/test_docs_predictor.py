"""The page of the predictor: its Python and its command run as they stand, one behind the other."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "predictor.md").read_text(encoding="utf-8")


def write_video(path, images):
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 5, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(image[:, :, ::-1])
    writer.release()


def test_the_page(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("output").mkdir()
    Path("output/farm").symlink_to(trained_run.folder)
    for name in ("farm.yaml", "data"):
        Path(name).symlink_to(trained_run.folder.parent / name)
    images = [np.array(Image.open(path)) for path in trained_run.images]
    Image.fromarray(images[0]).save("photo.png")
    write_video("video.avi", images)  # without loss
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python"] * 3 + ["bash", "bash", "python", "bash", "bash"]
    names = {}
    # The first of the shell serves, the last one pushes: tests/apps/test_serve.py and test_hub.py do that.
    for kind, code in [*blocks[:3], *blocks[4:-1]]:
        if kind == "bash":
            python, *arguments = shlex.split(code.replace("tools/", f"{ROOT}/tools/").replace("\\\n", ""))
            assert python == "python"
            subprocess.run(
                [sys.executable, *arguments], check=True, env={"PYTHONPATH": str(ROOT), "HOME": "/"}
            )
        else:
            exec(compile(code.replace("photo.jpg", "photo.png"), "predictor.md", "exec"), names)

    with Image.open("overlay.png") as overlay:
        assert overlay.size[0] >= 56
    for number, path in enumerate(trained_run.images):
        with Image.open(f"predictions/labels/{number:06d}.png") as labels:
            assert np.array_equal(np.array(labels), trained_run.labels(path))
    share, *_ = map(float, capsys.readouterr().out.split())
    assert share == (trained_run.labels(trained_run.images[0]) == 2).mean()
    first, again = (
        json.loads(Path(f"output/{run}/evaluation/farm_val.json").read_text()) for run in ("farm", "again")
    )
    assert again["metrics"] == first["metrics"] and again["classes"] == first["classes"]
    # The last Python loaded the bundle.
    prediction = names["predictor"]("photo.png")
    assert np.array_equal(prediction.labels, trained_run.labels(trained_run.images[0]))
    assert names["predictor"].cfg.MODEL.WEIGHTS == "farm_model/model.safetensors"
