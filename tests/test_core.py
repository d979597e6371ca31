"""What needs torch alone can be imported without the packages of detection and images."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = ("detectron2", "cv2", "timm", "pycocotools")


PACKAGES = ["regseg_d2.ops", "regseg_d2.state", "regseg_d2.common", "regseg_d2.regularizers"]
ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8"), re.DOTALL
)
REFUSE = f"""
import sys
from importlib.abc import MetaPathFinder


class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OUTSIDE!r}:
            raise ImportError(name)


sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_the_core_needs_torch_alone(package):
    code = f"""
{REFUSE}
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.iter_modules(getattr(package, "__path__", []), {package!r} + "."):
    importlib.import_module(module.name)
print(sum(name.startswith({package!r}) for name in sys.modules))
"""
    assert int(run(code)) >= 1


def run(code, folder=ROOT):
    command = [sys.executable, "-c", code]
    paths = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SETUP = """
import torch
from torch import nn
torch.manual_seed(0)
features, logits = torch.randn(2, 512, 16, 16, requires_grad=True), torch.randn(2, 19, 16, 16)
labels = torch.randint(0, 19, (2, 64, 64))
cross_entropy = torch.nn.functional.cross_entropy(
    nn.functional.interpolate(logits, size=(64, 64)), labels
)
"""
CHECK = """
assert set(losses) >= {"loss_car_intra_c2p", "loss_pne_contrast"}
loss.backward()
assert features.grad.abs().sum() > 0
"""


def test_the_first_snippet_of_the_page_runs_without_detectron2():
    run(REFUSE + SETUP + BLOCKS[0] + CHECK)


# Images whose colours say the class.
TRAINING = """
from torchvision.models.segmentation import fcn_resnet50


def batches():
    while True:
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            labels = torch.randint(0, 19, (2, 2, 2), generator=generator)
            labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
            yield torch.randn(2, 3, 64, 64, generator=generator) * 0.2 + labels.unsqueeze(1) / 9 - 1, labels


loader = [next(stream) for stream in [batches()] for _ in range(20)]
"""


def test_all_methods_train_torchvisions_network_as_the_page_says(tmp_path):
    end = """
first, last = (sum(history[part]) for part in (slice(0, 4), slice(-4, None)))
print(first, last)
assert len(history) == 20
"""
    first, last = map(float, run(REFUSE + SETUP + TRAINING + BLOCKS[1] + end, tmp_path).split())
    assert last < 0.8 * first
