"""Known-bad combinations: each rule fires on its combination, names its cure, and keeps quiet otherwise."""

import inspect
import sys
from dataclasses import replace

import pytest

from regseg_d2.apps.doctor import rules
from regseg_d2.apps.doctor.rules import ERROR, REQUIRED, WARNING, Facts, find_problems, release

GOOD = Facts(
    python=(3, 11),
    system="Linux",
    versions={
        **dict.fromkeys(REQUIRED, "1.0"),
        "torch": "2.11.0",
        "torchvision": "0.26.0",
        "numpy": "2.4.6",
        "pillow": "13.0.0",
        "setuptools": "81.0.0",
        "opencv-python": "5.0.0.93",
        "detectron2": "0.7.2",
    },
    opencv_headless=False,
    cuda_build="13.0",
    shared_memory=8 * 2**30,
)


def versions(**changes):
    changed = {**GOOD.versions, **{name.replace("_", "-"): version for name, version in changes.items()}}
    return replace(GOOD, versions={name: version for name, version in changed.items() if version is not None})


def traits(name, facts=GOOD):
    return replace(facts, detectron2_traits=frozenset({name}))


NO_LIBGL = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"

BAD = [
    (replace(GOOD, python=(3, 9)), ERROR, "Python 3.9 is not supported", "PYTHON=python3.13"),
    (replace(GOOD, python=(3, 14)), ERROR, "Python 3.14 is not supported", "PYTHON=python3.13"),
    (versions(timm=None), ERROR, "not installed: timm", "make setup"),
    (versions(opencv_python=None), ERROR, "not installed: opencv-python", "make setup"),
    (versions(detectron2=None), ERROR, "Detectron2 is not installed", "regseg_d2 install-detectron2"),
    (versions(torchvision="0.25.0"), ERROR, "needs torchvision 0.26", "torch torchvision"),
    (versions(torch="2.11.0+cpu"), ERROR, "torchvision::nms", "torch torchvision"),
    (versions(torchvision="0.26.0+cpu"), ERROR, "torchvision::nms", "torch torchvision"),
    (versions(torch="2.2.2", torchvision="0.17.2"), ERROR, "built for NumPy 1", "torch torchvision"),
    (replace(GOOD, import_errors={"cv2": NO_LIBGL}), ERROR, "libGL.so.1", "libgl1"),
    (versions(opencv_python_headless="5.0.0.93"), WARNING, "share a folder", "pip uninstall -y"),
    (versions(setuptools="82.0.1"), WARNING, "pkg_resources", "setuptools<82"),
    (traits("np.bool"), ERROR, "np.bool", "--reinstall"),
    (traits("Image.LINEAR"), ERROR, "Image.LINEAR", "--reinstall"),
    (traits("internal import"), WARNING, "Cityscapes evaluator", "--reinstall"),
    (traits("sample of a set"), WARNING, "MapDataset", "--reinstall"),
    (traits("tools package"), WARNING, "'tools'", "--reinstall"),
    (replace(GOOD, gpu_present=True, cuda_build=""), WARNING, "CPU-only build", "torch torchvision"),
    (replace(GOOD, gpu_present=True), WARNING, "cannot use it", "driver"),
    (replace(GOOD, shared_memory=64 * 2**20), WARNING, "/dev/shm has 64 MB", "--shm-size"),
]


@pytest.mark.parametrize(("facts", "severity", "what", "cure"), BAD, ids=[case[2] for case in BAD])
def test_each_bad_combination_is_found_and_nothing_else(facts, severity, what, cure):
    (finding,) = find_problems(facts)
    assert finding.severity == severity
    assert what in finding.what
    assert cure in finding.cure


def test_every_rule_is_tested():
    source, reached = inspect.getsource(rules).splitlines(), set()

    def trace(frame, event, argument):
        if frame.f_code.co_filename == rules.__file__:
            reached.add(frame.f_lineno)
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for case in BAD:
            find_problems(case[0])
    finally:
        sys.settrace(before)
    there = {number for number, line in enumerate(source, start=1) if "yield Finding(" in line}
    assert len(there) > 10 and there <= reached


GOOD_ONES = {
    "tested": GOOD,
    "Python 3.10 with its older versions": replace(
        GOOD, python=(3, 10), versions={**GOOD.versions, "numpy": "2.2.6"}
    ),
    "older pair": versions(torch="2.4.1", torchvision="0.19.1"),
    "CPU-only pair": versions(torch="2.11.0+cpu", torchvision="0.26.0+cpu"),
    "Mac": replace(GOOD, system="Darwin", shared_memory=None, cuda_build=""),
    "headless alone": versions(opencv_python=None, opencv_python_headless="5.0.0.93"),
    "headless over the other": replace(versions(opencv_python_headless="5.0.0.93"), opencv_headless=True),
    "old Detectron2 with old NumPy": traits("np.bool", versions(numpy="1.23.5")),
    "old Detectron2 with old Pillow": traits("Image.LINEAR", versions(pillow="9.5.0")),
    "sample of a set before 3.11": traits("sample of a set", replace(GOOD, python=(3, 10))),
    "no setuptools": versions(setuptools=None),
    "GPU in use": replace(GOOD, gpu_present=True, cuda_available=True),
    "cv2 broken otherwise": replace(GOOD, import_errors={"cv2": "ImportError: numpy is missing"}),
}


@pytest.mark.parametrize("name", GOOD_ONES)
def test_good_combinations_are_left_in_peace(name):
    assert find_problems(GOOD_ONES[name]) == []


def test_errors_come_first():
    both = replace(versions(setuptools="82.0", torchvision="0.20.0"), shared_memory=0)
    assert [finding.severity for finding in find_problems(both)] == [ERROR, WARNING, WARNING]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.11.0+cu130", (2, 11, 0)), ("0.1.5.post2022", (0, 1, 5)), ("", ()), ("dev", ())],
)
def test_release(version, numbers):
    assert release(version) == numbers
