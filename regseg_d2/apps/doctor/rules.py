"""Combinations of versions that are known not to work, each with its cure.

Every rule is a pure function of :class:`Facts`; how the facts are found out is in ``command.py``.
Standard library only: it has to work where everything else is broken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

ERROR = "error"
WARNING = "warning"

# First and last supported Python.
PYTHON_RANGE = ((3, 10), (3, 12))
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
REINSTALL_DETECTRON2 = "python tools/install_detectron2.py --reinstall"
# Below this, PyTorch's loader workers die of "Bus error" with images of usual size.
SMALL_SHARED_MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        python: major and minor version.
        system: ``platform.system()``.
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


def _python_out_of_range(facts: Facts) -> Finding | None:
    first, last = PYTHON_RANGE
    if first <= facts.python <= last:
        return None
    what = f"Python {facts.python[0]}.{facts.python[1]} is not supported (3.{first[1]} to 3.{last[1]} is)"
    return Finding(ERROR, what, "make distclean, then make PYTHON=python3.12 setup")


def _missing_distributions(facts: Facts) -> Finding | None:
    missing = [name for name in REQUIRED if name not in facts.versions]
    if "opencv-python" not in facts.versions and "opencv-python-headless" not in facts.versions:
        missing.append("opencv-python")
    if not missing:
        return None
    return Finding(
        ERROR, f"not installed: {', '.join(missing)}", "pip install -c constraints.txt -e . (or make setup)"
    )


def _detectron2_missing(facts: Facts) -> Finding | None:
    if "detectron2" in facts.versions:
        return None
    return Finding(ERROR, "Detectron2 is not installed", "python tools/install_detectron2.py")


def _torch_pair(facts: Facts) -> Finding | None:
    torch, torchvision = facts.versions.get("torch", ""), facts.versions.get("torchvision", "")
    have = release(torch)[:2], release(torchvision)[:2]
    # torch 2.N is released together with torchvision 0.(N + 15).
    if not all(have) or have[0][0] != 2 or have[1] == (0, have[0][1] + 15):
        return None
    what = f"torch {torch} and torchvision {torchvision} do not belong together"
    return Finding(ERROR, f"{what}: torch {torch} needs torchvision 0.{have[0][1] + 15}", REINSTALL_PAIR)


def _cpu_torch_with_cuda_torchvision(facts: Facts) -> Finding | None:
    torch, torchvision = facts.versions.get("torch", ""), facts.versions.get("torchvision", "")
    # Only Linux builds carry CUDA on PyPI; elsewhere both are CPU builds without a suffix.
    if facts.system != "Linux" or not torchvision or ("+cpu" in torch) == ("+cpu" in torchvision):
        return None
    what = (
        f"torch {torch} and torchvision {torchvision} are of different builds (one CPU-only, one from PyPI)"
    )
    return Finding(ERROR, f"{what}: 'operator torchvision::nms does not exist'", REINSTALL_PAIR)


def _numpy_too_new_for_torch(facts: Facts) -> Finding | None:
    numpy, torch = facts.versions.get("numpy", ""), facts.versions.get("torch", "")
    if not torch or release(numpy) < (2,) or release(torch) >= (2, 3):
        return None
    return Finding(ERROR, f"torch {torch} was built for NumPy 1, and NumPy is {numpy}", REINSTALL_PAIR)


def _opencv_without_system_libraries(facts: Facts) -> Finding | None:
    error = facts.import_errors.get("cv2", "")
    library = re.search(r"lib(GL|gthread|glib|xcb|SM|Xext)[\w.-]*\.so[\w.]*", error)
    if not library:
        return None
    cure = (
        "as root: apt-get install -y libgl1 libglib2.0-0 libxcb1; without root, the build that needs none: "
        "pip install --no-deps --force-reinstall -c constraints.txt opencv-python-headless"
    )
    return Finding(ERROR, f"OpenCV does not find the system library {library.group()}", cure)


def _two_opencvs(facts: Facts) -> Finding | None:
    both = "opencv-python" in facts.versions and "opencv-python-headless" in facts.versions
    # Headless over the other is the cure of the rule above, and stands.
    if not both or facts.opencv_headless:
        return None
    what = "opencv-python and opencv-python-headless share a folder: removing one breaks the other"
    cure = (
        "pip uninstall -y opencv-python opencv-python-headless, "
        "then pip install -c constraints.txt opencv-python"
    )
    return Finding(WARNING, what, cure)


def _model_zoo_without_pkg_resources(facts: Facts) -> Finding | None:
    setuptools = facts.versions.get("setuptools", "")
    if release(setuptools) < (82,):
        return None
    what = f"setuptools {setuptools} has no pkg_resources, which detectron2.model_zoo imports"
    return Finding(
        WARNING, what, "nothing here uses model_zoo; if your own code does: pip install 'setuptools<82'"
    )


def _detectron2_before_numpy_1_24(facts: Facts) -> Finding | None:
    numpy = facts.versions.get("numpy", "")
    if "np.bool" not in facts.detectron2_traits or release(numpy) < (1, 24):
        return None
    version = facts.versions.get("detectron2", "")
    what = f"Detectron2 {version} uses np.bool, which NumPy {numpy} no longer has"
    return Finding(ERROR, what, REINSTALL_DETECTRON2)


def _detectron2_before_pillow_10(facts: Facts) -> Finding | None:
    pillow = facts.versions.get("pillow", "")
    if "Image.LINEAR" not in facts.detectron2_traits or release(pillow) < (10,):
        return None
    version = facts.versions.get("detectron2", "")
    what = f"Detectron2 {version} uses Image.LINEAR, which Pillow {pillow} no longer has"
    return Finding(ERROR, what, REINSTALL_DETECTRON2)


def _detectron2_internal_import(facts: Facts) -> Finding | None:
    if "internal import" not in facts.detectron2_traits:
        return None
    what = (
        "this Detectron2's Cityscapes evaluator imports a module that only its authors have ('deeplearning')"
    )
    cure = f"this project evaluates without it; if your own code needs it: {REINSTALL_DETECTRON2}"
    return Finding(WARNING, what, cure)


def _detectron2_sample_of_set(facts: Facts) -> Finding | None:
    if "sample of a set" not in facts.detectron2_traits or facts.python < (3, 11):
        return None
    what = "this Detectron2's MapDataset fails under Python 3.11 and later when a mapper returns None"
    cure = f"this project's mapper never does; if yours does: {REINSTALL_DETECTRON2}"
    return Finding(WARNING, what, cure)


def _stray_tools(facts: Facts) -> Finding | None:
    if "tools package" not in facts.detectron2_traits:
        return None
    what = "Detectron2's install left a package called 'tools' beside it, which hides folders of that name"
    return Finding(WARNING, what, REINSTALL_DETECTRON2)


def _gpu_unused(facts: Facts) -> Finding | None:
    if not facts.gpu_present or facts.cuda_available or facts.cuda_build is None:
        return None
    if not facts.cuda_build:
        return Finding(WARNING, "there is an NVIDIA GPU, and torch is a CPU-only build", REINSTALL_PAIR)
    what = f"there is an NVIDIA GPU, and torch (CUDA {facts.cuda_build}) cannot use it"
    cure = (
        f"the driver must be new enough for CUDA {facts.cuda_build} (nvidia-smi shows what it supports) "
        "and CUDA_VISIBLE_DEVICES must not hide the GPU; in a container: --gpus all"
    )
    return Finding(WARNING, what, cure)


def _small_shared_memory(facts: Facts) -> Finding | None:
    if facts.shared_memory is None or facts.shared_memory >= SMALL_SHARED_MEMORY:
        return None
    what = f"/dev/shm has {facts.shared_memory // 2**20} MB: loader workers may die of 'Bus error'"
    return Finding(WARNING, what, "in a container: --shm-size=2g or --ipc=host; or DATALOADER.NUM_WORKERS 0")


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    _python_out_of_range,
    _missing_distributions,
    _detectron2_missing,
    _torch_pair,
    _cpu_torch_with_cuda_torchvision,
    _numpy_too_new_for_torch,
    _opencv_without_system_libraries,
    _two_opencvs,
    _model_zoo_without_pkg_resources,
    _detectron2_before_numpy_1_24,
    _detectron2_before_pillow_10,
    _detectron2_internal_import,
    _detectron2_sample_of_set,
    _stray_tools,
    _gpu_unused,
    _small_shared_memory,
)


def find_problems(facts: Facts) -> list[Finding]:
    """Applies every rule to ``facts``; errors come before warnings."""
    findings = [finding for rule in RULES if (finding := rule(facts)) is not None]
    return sorted(findings, key=lambda finding: finding.severity != ERROR)
