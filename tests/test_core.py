"""What needs torch alone can be imported without the packages of detection and images."""

import subprocess
import sys

import pytest

OUTSIDE = ("detectron2", "fvcore", "cv2", "timm", "pycocotools")


@pytest.mark.parametrize("package", ["regseg_d2.ops", "regseg_d2.state", "regseg_d2.common"])
def test_equations_and_state_need_torch_alone(package):
    code = f"""
import importlib, pkgutil, sys
for name in {OUTSIDE!r}:
    sys.modules[name] = None  # importing it is an error
package = importlib.import_module({package!r})
for module in pkgutil.iter_modules(getattr(package, "__path__", []), {package!r} + "."):
    importlib.import_module(module.name)
print(sum(name.startswith({package!r}) for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
