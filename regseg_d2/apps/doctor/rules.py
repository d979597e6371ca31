"""Combinations of versions that are known not to work, each with its cure.

A rule looks at :class:`Facts` alone; how the facts are found out is in ``command.py``.
Standard library only: it has to work where everything else is broken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ERROR = "error"
WARNING = "warning"

# First and last supported Python.
PYTHON_RANGE = ((3, 10), (3, 13))
# Distributions that training cannot do without.
REQUIRED = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "timm",
    "fvcore",
    "yacs",
    "omegaconf",
    "hydra-core",
    "iopath",
)
REINSTALL_PAIR = "pip install -c constraints.txt --force-reinstall torch torchvision"
REINSTALL_DETECTRON2 = "python -m regseg_d2 install-detectron2 --reinstall"
# Below this, PyTorch's loader workers die of "Bus error" with images of usual size.
SMALL_SHARED_MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        versions: version of each installed distribution, by its normalised name; "detectron2" is the
            package, whatever distribution it came from.
        import_errors: message of the exception, by the module that could not be imported.
        detectron2_traits: names of traits found in Detectron2's files, see ``command.DETECTRON2_TRAITS``.
        opencv_headless: whether the ``cv2`` on disk is the build without windows; None if unknown.
        gpu_present: whether the system has an NVIDIA device.
        cuda_build: CUDA version that torch was built with; "" for none, None if unknown.
        cuda_available: whether torch can use the device.
        shared_memory: size of ``/dev/shm`` in bytes; None if there is none.
    """

    python: tuple[int, int] = PYTHON_RANGE[1]
    system: str = "Linux"
    versions: dict[str, str] = field(default_factory=dict)
    import_errors: dict[str, str] = field(default_factory=dict)
    detectron2_traits: frozenset[str] = frozenset()
    opencv_headless: bool | None = None
    gpu_present: bool = False
    cuda_build: str | None = None
    cuda_available: bool = False
    shared_memory: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Its severity is ``ERROR`` if training cannot work, ``WARNING`` if it can.
    """

    severity: str
    what: str
    cure: str


def release(version: str) -> tuple[int, ...]:
    """Returns the numbers at the start of a version: ``"2.11.0+cu130"`` gives ``(2, 11, 0)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(x) for x in match.group().split(".")) if match else ()


def _of_python_and_distributions(facts: Facts) -> Iterator[Finding]:
    first, last = PYTHON_RANGE
    if not first <= facts.python <= last:
        what = f"Python {facts.python[0]}.{facts.python[1]} is not supported (3.{first[1]} to 3.{last[1]} is)"
        yield Finding(ERROR, what, "make distclean, then make PYTHON=python3.13 setup")
    missing = [name for name in REQUIRED if name not in facts.versions]
    if "opencv-python" not in facts.versions and "opencv-python-headless" not in facts.versions:
        missing.append("opencv-python")
    if missing:
        cure = "pip install -c constraints.txt -e . (or make setup)"
        yield Finding(ERROR, f"not installed: {', '.join(missing)}", cure)
    setuptools = facts.versions.get("setuptools", "")
    if release(setuptools) >= (82,):
        what = f"setuptools {setuptools} has no pkg_resources, which detectron2.model_zoo imports"
        cure = "nothing here uses model_zoo; if your own code does: pip install 'setuptools<82'"
        yield Finding(WARNING, what, cure)


def _of_torch(facts: Facts) -> Iterator[Finding]:
    torch, torchvision = facts.versions.get("torch", ""), facts.versions.get("torchvision", "")
    have = release(torch)[:2], release(torchvision)[:2]
    # torch 2.N is released together with torchvision 0.(N + 15).
    if all(have) and have[0][0] == 2 and have[1] != (0, have[0][1] + 15):
        what = f"torch {torch} and torchvision {torchvision} do not belong together"
        what = f"{what}: torch {torch} needs torchvision 0.{have[0][1] + 15}"
        yield Finding(ERROR, what, REINSTALL_PAIR)
    # Only Linux builds carry CUDA on PyPI; elsewhere both are CPU builds without a suffix.
    if facts.system == "Linux" and torchvision and ("+cpu" in torch) != ("+cpu" in torchvision):
        what = (
            f"torch {torch} and torchvision {torchvision} are of different builds (one CPU-only, one from "
            "PyPI): 'operator torchvision::nms does not exist'"
        )
        yield Finding(ERROR, what, REINSTALL_PAIR)
    numpy = facts.versions.get("numpy", "")
    if torch and release(numpy) >= (2,) and release(torch) < (2, 3):
        yield Finding(ERROR, f"torch {torch} was built for NumPy 1, and NumPy is {numpy}", REINSTALL_PAIR)


def _of_opencv(facts: Facts) -> Iterator[Finding]:
    error = facts.import_errors.get("cv2", "")
    library = re.search(r"lib(GL|gthread|glib|xcb|SM|Xext)[\w.-]*\.so[\w.]*", error)
    if library:
        cure = (
            "as root: apt-get install -y libgl1 libglib2.0-0 libxcb1; without root, the build that needs "
            "none: pip install --no-deps --force-reinstall -c constraints.txt opencv-python-headless"
        )
        yield Finding(ERROR, f"OpenCV does not find the system library {library.group()}", cure)
    both = "opencv-python" in facts.versions and "opencv-python-headless" in facts.versions
    # Headless over the other is the cure of the rule above, and stands.
    if both and not facts.opencv_headless:
        what = "opencv-python and opencv-python-headless share a folder: removing one breaks the other"
        cure = (
            "pip uninstall -y opencv-python opencv-python-headless, "
            "then pip install -c constraints.txt opencv-python"
        )
        yield Finding(WARNING, what, cure)


def _of_detectron2(facts: Facts) -> Iterator[Finding]:
    versions, traits = facts.versions, facts.detectron2_traits
    numpy, pillow = versions.get("numpy", ""), versions.get("pillow", "")
    if "detectron2" not in versions:
        yield Finding(ERROR, "Detectron2 is not installed", "python -m regseg_d2 install-detectron2")
    this = f"Detectron2 {versions.get('detectron2', '')}"
    if "np.bool" in traits and release(numpy) >= (1, 24):
        what = f"{this} uses np.bool, which NumPy {numpy} no longer has"
        yield Finding(ERROR, what, REINSTALL_DETECTRON2)
    if "Image.LINEAR" in traits and release(pillow) >= (10,):
        what = f"{this} uses Image.LINEAR, which Pillow {pillow} no longer has"
        yield Finding(ERROR, what, REINSTALL_DETECTRON2)
    if "internal import" in traits:
        what = (
            "this Detectron2's Cityscapes evaluator imports a module that only its authors have "
            "('deeplearning')"
        )
        cure = f"this project evaluates without it; if your own code needs it: {REINSTALL_DETECTRON2}"
        yield Finding(WARNING, what, cure)
    if "sample of a set" in traits and facts.python >= (3, 11):
        what = "this Detectron2's MapDataset fails under Python 3.11 and later when a mapper returns None"
        cure = f"this project's mapper never does; if yours does: {REINSTALL_DETECTRON2}"
        yield Finding(WARNING, what, cure)
    if "tools package" in traits:
        what = (
            "Detectron2's install left a package called 'tools' beside it, which hides folders of that name"
        )
        yield Finding(WARNING, what, REINSTALL_DETECTRON2)


def _of_the_machine(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_present and not facts.cuda_available and facts.cuda_build == "":
        yield Finding(WARNING, "there is an NVIDIA GPU, and torch is a CPU-only build", REINSTALL_PAIR)
    elif facts.gpu_present and not facts.cuda_available and facts.cuda_build is not None:
        what = f"there is an NVIDIA GPU, and torch (CUDA {facts.cuda_build}) cannot use it"
        cure = (
            f"the driver must be new enough for CUDA {facts.cuda_build} (nvidia-smi shows what it supports) "
            "and CUDA_VISIBLE_DEVICES must not hide the GPU; in a container: --gpus all"
        )
        yield Finding(WARNING, what, cure)
    if facts.shared_memory is not None and facts.shared_memory < SMALL_SHARED_MEMORY:
        what = f"/dev/shm has {facts.shared_memory // 2**20} MB: loader workers may die of 'Bus error'"
        cure = "in a container: --shm-size=2g or --ipc=host; or DATALOADER.NUM_WORKERS 0"
        yield Finding(WARNING, what, cure)


def find_problems(facts: Facts) -> list[Finding]:
    """Applies every rule to ``facts``; errors come before warnings."""
    groups = (_of_python_and_distributions, _of_torch, _of_opencv, _of_detectron2, _of_the_machine)
    findings = [finding for rules in groups for finding in rules(facts)]
    return sorted(findings, key=lambda finding: finding.severity != ERROR)
