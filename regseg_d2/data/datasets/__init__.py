"""Data sets: how to declare one, and those that are built in."""

from regseg_d2.data.datasets.builtin import register_builtin
from regseg_d2.data.datasets.cooccurrence import register_cooccurrence
from regseg_d2.data.datasets.definitions import definition_names, load_definition
from regseg_d2.data.datasets.spec import DatasetSpec, datasets_root

__all__ = ["DatasetSpec", "datasets_root", "register_builtin_datasets"]


def register_builtin_datasets() -> None:
    """Puts the built-in data sets in Detectron2's catalogs; reads and writes no image or label."""
    for name in definition_names():
        for spec in load_definition(name).specs.values():
            register_builtin(spec)
    register_cooccurrence()
