"""Built-in data sets under names that Detectron2 or a user registers too."""

import subprocess
import sys

import pytest

NAMES = ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_test", "ade20k_sem_seg_val")
CHECK = f"""
from detectron2.data import DatasetCatalog, MetadataCatalog
for name in {NAMES}:
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "sem_seg" and metadata.ignore_label == 255, name
    assert metadata.label_map[0] == 255, name
    assert DatasetCatalog[name].__self__.name == name
assert metadata.stuff_classes[8] == "windowpane"  # Detectron2 has "window "
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "imports",
    [
        "import regseg_d2.data",
        # Twice, and by way of a module below.
        """
import regseg_d2.segmentor, detectron2.data.datasets.builtin, regseg_d2.dataset_tools.preparation
from regseg_d2.data.datasets import register_builtin_datasets
register_builtin_datasets()
""",
    ],
)
def test_ours_take_the_place_of_detectron2s_whatever_is_imported_first(imports):
    result = python(f"{imports}\n{CHECK}")
    assert result.returncode == 0, result.stderr
    assert "registered by" not in result.stderr


def test_a_users_own_registration_stays_and_that_is_said():
    code = """
import logging
logging.basicConfig()
from detectron2.data import DatasetCatalog, MetadataCatalog
name = "ade20k_sem_seg_val"
DatasetCatalog.remove(name); MetadataCatalog.remove(name)
DatasetCatalog.register(name, lambda: ["mine"])
MetadataCatalog.get(name).set(stuff_classes=["a", "b"])
import regseg_d2.data
assert DatasetCatalog.get(name) == ["mine"]
assert MetadataCatalog.get(name).stuff_classes == ["a", "b"]
assert len(MetadataCatalog.get("ade20k_sem_seg_train").stuff_classes) == 150
# Afterwards it is Detectron2's own error.
DatasetCatalog.register("ade20k_sem_seg_train", list)
"""
    result = python(code)
    assert '"ade20k_sem_seg_val" was registered by the module __main__' in result.stderr
    assert result.stderr.strip().endswith("Dataset 'ade20k_sem_seg_train' is already registered!")
