"""Data sets: how to declare one, and those that are built in."""

from regseg_d2.data.datasets.ade20k import ade20k_specs
from regseg_d2.data.datasets.builtin import register_builtin
from regseg_d2.data.datasets.camvid import camvid_specs
from regseg_d2.data.datasets.cityscapes import cityscapes_specs
from regseg_d2.data.datasets.coco_stuff import coco_stuff_specs
from regseg_d2.data.datasets.cooccurrence import register_cooccurrence
from regseg_d2.data.datasets.pascal_context import pascal_context_specs
from regseg_d2.data.datasets.spec import DatasetSpec, datasets_root
from regseg_d2.data.datasets.voc import voc_specs

__all__ = ["DatasetSpec", "datasets_root", "register_builtin_datasets"]


def register_builtin_datasets() -> None:
    """Puts the built-in data sets in Detectron2's catalogs; reads and writes no image or label."""
    for spec in [
        *ade20k_specs(),
        *camvid_specs(),
        *cityscapes_specs(),
        *coco_stuff_specs(),
        *pascal_context_specs(),
        *voc_specs(),
    ]:
        register_builtin(spec)
    register_cooccurrence()
