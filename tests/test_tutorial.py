"""docs/tutorial.md, command by command: from photos and masks to an ONNX file and a painted video."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COLORS = np.array([[60, 60, 70], [90, 60, 30], [60, 140, 50], [190, 170, 60]])


def draw(rng, size=(96, 128)):
    """A photo (H, W, 3), and its mask of values 0 to 3, in fields."""
    mask = np.kron(rng.integers(0, 4, (3, 4)), np.ones((size[0] // 3, size[1] // 4), int)).astype(np.uint8)
    photo = COLORS[mask] + rng.integers(-15, 15, (*size, 3))
    return photo.clip(0, 255).astype(np.uint8), mask


def write_farm(folder):
    rng = np.random.default_rng(0)
    for kind in ("photos", "masks"):
        (folder / "farm" / kind).mkdir(parents=True)
    for field in (1, 2):
        for number in range(1, 13):
            photo, mask = draw(rng)
            name = f"field{field}_{number:03}"
            Image.fromarray(photo).save(folder / "farm" / "photos" / f"{name}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "farm" / "masks" / f"{name}_mask.png")
    video = cv2.VideoWriter(str(folder / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for _ in range(6):
        video.write(draw(rng)[0][:, :, ::-1])
    video.release()


def write_files(folder):
    """The YAML files of the page; a later block of a file replaces its last line."""
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL):
        name, what = re.match(r"# (\S+\.yaml)(.*)\n", text).groups()
        yield name, what, text.partition("\n")[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial(tmp_path):
    write_farm(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    files = list(write_files(tmp_path))
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5

    def run(block):
        for command in block.strip().splitlines():
            assert command.startswith("regseg ")
            command = command.replace("regseg ", f"{sys.executable} -m regseg_d2 ", 1)
            begin = time.perf_counter()
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{time.perf_counter() - begin:6.1f} s  {command.partition(' -m ')[2]}")
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            yield done.stdout

    (name, _, text), (again, what, line), (config, _, keys) = files
    assert name == again == "farm.yaml" and "last line" in what
    (tmp_path / name).write_text(text)
    checked, divided = run(blocks[0])
    assert "field1_001" not in checked  # no problem that names a file
    assert "train.txt: 18 images" in divided and "val.txt: 6 images" in divided
    (tmp_path / name).write_text("".join(text.splitlines(keepends=True)[:-1]) + line)
    # As it stands, but for the length of the schedule and the size of the batch.
    short = keys.replace("MAX_ITER: 2000, IMS_PER_BATCH: 8", "MAX_ITER: 10, IMS_PER_BATCH: 2").replace(
        "EVAL_PERIOD: 200", "EVAL_PERIOD: 0"
    )
    assert short != keys
    (tmp_path / config).write_text(short)
    *_, compared = run(blocks[1])
    assert "farm_val" in compared and "one seed: not evidence" in compared
    list(run(blocks[2]))
    assert (tmp_path / "explored" / "page.html").stat().st_size > 100_000
    list(run(blocks[3]))
    video = cv2.VideoCapture(str(tmp_path / "predictions" / "videos" / "drive.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 6
    labels = tmp_path / "predictions" / "labels"
    assert len(list(labels.glob("*.png"))) == 24

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert Image.open(tmp_path / "overlay.png").width >= 128

    list(run(blocks[4]))
    session = onnxruntime.InferenceSession(str(tmp_path / "farm.onnx"))
    for path in sorted((tmp_path / "farm" / "photos").iterdir())[:3]:
        pixels = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)[None]
        (predicted,) = session.run(None, {"images": pixels})
        assert (predicted[0] == np.asarray(Image.open(labels / f"{path.stem}.png"))).mean() > 0.999
    assert (tmp_path / "farm_model" / "model.safetensors").is_file()
