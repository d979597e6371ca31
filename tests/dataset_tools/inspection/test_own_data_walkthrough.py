"""The README's way from a folder of one's own to pictures of predictions, by its own files and commands."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
# What makes the README's run fit into a test; the last of equal keys counts.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", ""),
    *("INPUT.CROP.SIZE", "[48, 64]", "SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "SEED", "0"),
]


def section():
    """The README's section: its YAML files by name, and its commands."""
    text = (ROOT / "README.md").read_text()
    (body,) = re.findall(r"^## Your own data\n(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE)
    files = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", body, flags=re.DOTALL))
    (commands,) = re.findall(r"```bash\n(.*?)```", body, flags=re.DOTALL)
    return files, commands.strip().splitlines()


def write_farm(root):
    """Six images for training and two for validation, whose colours tell their classes."""
    rng = np.random.default_rng(0)
    colors = np.array([[0, 0, 0], [120, 80, 40], [60, 160, 60], [200, 60, 160]])
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            label = np.kron(rng.integers(0, 4, (3, 4)), np.ones((16, 16), int)).astype(np.uint8)
            image = (colors[label] + rng.integers(0, 30, (48, 64, 3))).astype(np.uint8)
            for folder, pixels, suffix in (("images", image, "jpg"), ("labels", label, "png")):
                path = root / folder / split / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that has what the README's folder has, with the farm and its two files."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_farm(tmp_path / "farm")
    files, _ = section()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    photo = Image.open(tmp_path / "farm" / "images" / "val" / "0.jpg")
    photo.save(tmp_path / "photos" / "a.jpg")
    photo.convert("L").resize((80, 50)).save(tmp_path / "photos" / "more" / "b.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # train_net.py sets it for good
    return tmp_path


def run(command, monkeypatch, more=()):
    """Runs a command of the README in this process; returns its exit status."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [script, *arguments, *more])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def test_four_commands_of_the_readme(folder, monkeypatch, capsys):
    files, commands = section()
    assert set(files) == {"farm.yaml", "train_farm.yaml"}
    check, train, evaluate, demo = commands

    assert run(check, monkeypatch) == 0
    page = Path("farm.html").read_text()
    assert "farm_train" in page and "farm_val" in page and page.count("<img") == 2 * 8

    assert run(train, monkeypatch, SMALL) == 0
    assert Path("output/farm/model_final.pth").is_file()
    losses = [json.loads(line) for line in Path("output/farm/metrics.json").read_text().splitlines()]
    assert any("loss_contrast_seg_contrast" in line for line in losses)
    result = Path("output/farm/evaluation/farm_val.json")
    at_the_end = result.read_text()
    result.unlink()

    assert run(evaluate, monkeypatch, SMALL) == 0
    assert result.read_text() == at_the_end
    assert json.loads(at_the_end)["num_images"] == 2

    assert run(demo, monkeypatch, SMALL) == 0
    for name, size in (("a.png", (64, 48)), ("more/b.png", (80, 50))):
        index = Image.open(f"predictions/labels/{name}")
        assert index.size == size and set(np.unique(np.array(index)).tolist()) <= {0, 1, 2}
        color = Image.open(f"predictions/colors/{name}")
        assert color.getpalette()[6:9] == [200, 60, 160]  # weed
        assert Path(f"predictions/overlays/{name}").is_file()


def test_check_of_the_farm_without_its_label_map_suggests_the_readmes(folder, monkeypatch, capsys):
    declaration = Path("farm.yaml")
    declaration.write_text(re.sub(r"label_map:.*\n", "", declaration.read_text()))
    assert run("python tools/check_dataset.py --declared farm.yaml", monkeypatch) == 1
    assert "label_map: {0: 255, 1: 0, 2: 1, 3: 2}" in capsys.readouterr().out
